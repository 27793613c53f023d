"""`explain`: which backend a call would take, and why not the others."""

from __future__ import annotations

import json
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

from ..core.env import BACKEND
from ..core.op import explain as explain_call
from ..core.precision import TIERS
from .common import check_word, default_device, one_sentence_errors, parse_device, parse_dtype, parse_ints
from .console import stdout
from .example_calls import CallShape, call_arguments


@one_sentence_errors
def explain(
    op: Annotated[str, typer.Argument(help="Name of an op, such as causal_conv3d.")],
    shape: Annotated[str, typer.Option(help="B,C,T,H,W of the input.")],
    out_channels: Annotated[
        int | None, typer.Option(min=1, help="Output channels of a convolution; default: those of the input.")
    ] = None,
    kernel: Annotated[
        str, typer.Option(help="kT,kH,kW; a padding op pads for such a convolution.")
    ] = "3,3,3",
    stride: Annotated[str, typer.Option(help="Stride of a convolution: time,height,width.")] = "1,1,1",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default: the GPU if there is one.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Request this backend; default: auto.")] = None,
    precision: Annotated[str | None, typer.Option(help="exact or high.")] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Tensors are channels_last_3d.")
    ] = False,
    temporal_mode: Annotated[str | None, typer.Option(help="replicate or zeros.")] = None,
    spatial_mode: Annotated[str | None, typer.Option(help="zeros, replicate, reflect or valid.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> None:
    """Show which backend a call of OP would use, and why not the others; nothing is computed."""
    sizes = parse_ints("--shape", shape, 5, ",", "1,128,9,60,90")
    check_word("--backend", backend, BACKEND.choices)
    check_word("--precision", precision, TIERS)
    call = CallShape(
        shape=sizes,
        out_channels=out_channels or sizes[1],
        kernel_size=parse_ints("--kernel", kernel, 3, ",", "3,3,3"),
        stride=parse_ints("--stride", stride, 3, ",", "1,2,2"),
        dtype=parse_dtype(dtype),
        device=parse_device(device or default_device()),
        channels_last=channels_last,
        temporal_mode=temporal_mode,
        spatial_mode=spatial_mode,
    )
    arguments, keywords = call_arguments(op, call)
    # A user asks about inference; with gradients the weights would be parameters, and the answer may differ.
    with torch.no_grad():
        answer = explain_call(op, *arguments, backend=backend, precision=precision, **keywords)
    if as_json:
        facts = {"op": op, "chosen": answer.chosen, "source": answer.source, "backends": dict(answer.rows)}
        facts |= answer.work._asdict()
        typer.echo(json.dumps(facts, indent=2))
        return
    words = f"{answer.chosen} runs" if answer.chosen else "no backend can run it"
    layout = "channels_last_3d" if channels_last else "contiguous"
    console = stdout()
    console.print(
        f"[bold]{op}[/], {'×'.join(map(str, sizes))}, {dtype}, {layout}, {call.device}: [bold]{words}[/] "
        f"(decided by {answer.source}; {answer.work})",
        soft_wrap=True,
    )
    table = Table()
    table.add_column("backend")
    table.add_column("")
    for name, sentence in answer.rows:
        shown = f"[bold green]{name}[/]" if name == answer.chosen else name
        table.add_row(shown, escape(sentence))
    console.print(table)
