"""How much memory there is: of the machine, and of a container."""

from causalvae_kernels.core import machine_memory

GIB = 2**30


def test_free_is_a_part_of_all():
    assert 0 < machine_memory.free() <= machine_memory.total()


def test_a_container_has_its_own_limit(monkeypatch, tmp_path):
    limit, used, statistics = (tmp_path / name for name in ("max", "current", "stat"))
    monkeypatch.setattr(machine_memory, "_LIMITS", ((str(limit), str(used), str(statistics)),))
    before = machine_memory.free()
    limit.write_text("max\n")  # no limit
    used.write_text("5\n")
    assert machine_memory.free() >= before // 2
    limit.write_text(f"{GIB // 8}\n")
    used.write_text(f"{GIB // 16}\n")
    assert machine_memory.total() == GIB // 8
    assert machine_memory.free() == GIB // 16
    # Pages of files are given up where memory is asked for.
    statistics.write_text(f"anon 7\ninactive_file {GIB // 64}\n")
    assert machine_memory.free() == GIB // 16 + GIB // 64
