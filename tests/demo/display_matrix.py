"""Videos that say that they are to be turned, as phones write them."""

import struct

import torch

# (a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y); what becomes of frames (T, H, W, 3).
TURNS = {
    "as it is": ((1, 0, 0, 1), lambda x: x),
    "rotated by 90": ((0, 1, -1, 0), lambda x: torch.rot90(x, -1, (1, 2))),
    "rotated by 180": ((-1, 0, 0, -1), lambda x: torch.rot90(x, 2, (1, 2))),
    "rotated by 270": ((0, -1, 1, 0), lambda x: torch.rot90(x, 1, (1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda x: x.flip(2)),
    "upside down": ((1, 0, 0, -1), lambda x: x.flip(1)),
    "transposed": ((0, 1, 1, 0), lambda x: x.transpose(1, 2)),
    "transposed the other way": ((0, -1, -1, 0), lambda x: x.transpose(1, 2).flip(1, 2)),
}


def set_display_matrix(path, matrix):
    """Write the matrix into the track header of an mp4 file, for which PyAV has no call."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4
    # Version and flags, times and numbers, in version 1 of 64 bits, layers and volume.
    start += 4 + (20 if content[start] == 0 else 32) + 16
    a, b, c, d = (round(number * 2**16) for number in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    path.write_bytes(content)
