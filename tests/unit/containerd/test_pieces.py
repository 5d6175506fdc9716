"""Small owned things: user id ranges, records, the filter, /proc, templates on disk, the harvest's formats, errors."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bus.errors import HoneypotError
from bus.model import now
from containerd import errors, procfs, profile, uidrange
from containerd.bootroot import boot_root
from containerd.build import bootstrap_argv, main
from containerd.ending import erase, list_ids, sweep
from containerd.harvest import harvest
from containerd.launch import Process
from containerd.record import Record, read_record
from containerd.spec import Spec
from containerd.syscalls import in_directory, in_own_thread
from containerd.templates import RECORD, Template, discard_unused, find_template, install, list_templates


def test_no_range_is_given_twice_and_a_released_one_is_free(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        bases = list(threads.map(lambda n: uidrange.claim(tmp_path, f"c{n}"), range(200)))
    assert len(set(bases)) == 200
    assert all(base % 65536 == 0 and 0x10000000 <= base <= 0x6FFF0000 for base in bases)
    uidrange.release(tmp_path, "c7")
    assert len(list((tmp_path / ".ranges").iterdir())) == 199


def test_a_user_namespace_maps_its_range_and_ends_with_its_use() -> None:
    with uidrange.user_namespace(0x20000000) as descriptor:
        inode = os.fstat(descriptor).st_ino
        assert f"user:[{inode}]" != procfs.namespace("self", "user")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_record_comes_back_and_a_broken_one_is_none(spec: Spec) -> None:
    spec.directory.mkdir()
    assert read_record(spec.directory) is None
    record = Record(spec=spec, base=65536, created_at=now(), nspawn=Process.of(os.getpid()))
    record.write()
    assert read_record(spec.directory) == record
    (spec.directory / "container.json").write_text("{")
    assert read_record(spec.directory) is None


def test_a_process_is_known_by_when_it_started() -> None:
    mine = Process.of(os.getpid())
    assert mine is not None
    assert mine.is_alive
    assert not mine.model_copy(update={"start_ticks": mine.start_ticks + 1}).is_alive
    assert Process.of(2**22 - 1) is None


def test_listening_ports_are_seen_in_both_families() -> None:
    with socket.create_server(("127.0.0.1", 0)) as v4, socket.create_server(("::1", 0), family=socket.AF_INET6) as v6:
        found = procfs.listening(os.getpid(), "tcp")
        assert {v4.getsockname()[1], v6.getsockname()[1]} <= found
        with socket.create_connection(v4.getsockname()) as client:
            assert client.getsockname()[1] not in procfs.listening(os.getpid(), "tcp")


def test_the_profile_keeps_no_power_over_the_host_and_names_no_call_twice() -> None:
    kept = profile.kept_capabilities()
    for name in ("sys_admin", "net_admin", "sys_module", "sys_ptrace", "mknod", "sys_boot", "sys_resource", "bpf"):
        assert not kept >> profile._CAPABILITIES.index(name) & 1
    allowed, refused = profile._words("allow.txt"), profile._words("refuse.txt")
    assert len({*allowed, *refused}) == len(allowed) + len(refused)


def test_the_filter_is_whole_instructions_and_fits_stage_1() -> None:
    out = Path(f"/tmp/filter-{os.getpid()}")
    try:
        with out.open("wb") as file:
            profile.write_filter(file)
        size = out.stat().st_size
    finally:
        out.unlink()
    assert size % 8 == 0
    assert 200 < size // 8 < 4096


def test_the_boot_root_is_made_once_and_is_executable(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as threads:
        made = set(threads.map(boot_root, [tmp_path / "cache"] * 3))
    assert len(made) == 1
    root = made.pop()
    done = subprocess.run([root / "stage1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (99, "stage1: arguments: Invalid argument\n")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [root.name]


def test_a_thread_of_its_own_moves_nobody_else_and_hands_on_its_error(tmp_path: Path) -> None:
    before = Path.cwd()
    assert in_directory(tmp_path, Path.cwd) == tmp_path
    assert Path.cwd() == before
    with pytest.raises(ZeroDivisionError):
        in_own_thread(lambda: 1 // 0)


def _built(place: Path, template: Template, image: str) -> Path:
    made = place / f".building-{image[:4]}"
    (made / "root/etc").mkdir(parents=True)
    (made / RECORD).write_text(template.record.model_copy(update={"image": image}).model_dump_json())
    return made


def test_a_template_is_replaced_in_one_step_and_the_old_one_stays_while_used(
    template: Template, tmp_path: Path
) -> None:
    place = tmp_path / "templates"
    place.mkdir()
    for image in ("1" * 64, "2" * 64):
        install(_built(place, template, image), place, template.record)
        assert find_template(place, "small").record.image == image
    assert [found.name for found in list_templates(place)] == ["small"]
    assert discard_unused(place, {"1" * 64}) == []
    assert discard_unused(place, {"2" * 64}) == [f".old-small-{'1' * 64}"]
    assert [path.name for path in place.iterdir()] == ["small"]


def test_a_missing_template_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(errors.TemplateError, match="honeypot template build small"):
        find_template(tmp_path, "small")


def test_a_build_of_a_wrong_name_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ssh-templat", "--templates", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "did you mean 'ssh-template'?" in said


def test_the_bootstrap_names_no_host(template: Template) -> None:
    argv = bootstrap_argv(template.recipe, Path("/x"))
    assert argv[-2:] == ["bookworm", "/x"]
    assert not any("://" in word for word in argv)


def test_a_harvest_keeps_owners_links_and_holes_and_lists_what_was_deleted(tmp_path: Path) -> None:
    upper = tmp_path / "c/disk/u"
    upper.mkdir(parents=True)
    (upper / "file").write_bytes(b"data")
    os.chown(upper / "file", 65536 + 7, 3)
    os.link(upper / "file", upper / "same")
    (upper / "link").symlink_to("/etc/shadow")
    os.mknod(upper / "gone", 0o600 | 0o020000, os.makedev(0, 0))
    with (upper / "holes").open("wb") as file:
        file.seek(1 << 40)
        file.write(b"end")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(upper / "socket"))
    found = harvest(tmp_path / "c", 65536, tmp_path / "out.tar")
    assert (found.files, found.others, found.skipped, found.deleted) == (3, 1, 1, ("gone",))
    with tarfile.open(tmp_path / "out.tar") as tar:
        members = {member.name: member for member in tar}
        assert (members["file"].uid, members["file"].gid) == (7, 65534)
        assert members["same"].linkname == "file"
        assert members["link"].linkname == "/etc/shadow"
        assert members["holes"].size == (1 << 40) + 3
        holes = tar.extractfile("holes")
        assert isinstance(holes, io.BufferedReader)
        holes.seek(-4, os.SEEK_END)
        assert holes.read() == b"\0end"
    assert (
        subprocess.run(["tar", "-tf", tmp_path / "out.tar"], check=True, capture_output=True).stdout.count(b"\n") == 4
    )


def test_a_harvest_that_can_not_be_written_leaves_no_half_one(tmp_path: Path) -> None:
    (tmp_path / "c/disk/u").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        harvest(tmp_path / "c", 65536, tmp_path / "nowhere/out.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_erasing_what_is_not_there_or_hardly_there_does_nothing_else(spec: Spec) -> None:
    erase(spec.roots, "never-was")
    spec.directory.mkdir()
    (spec.directory / "disk").mkdir()
    (spec.directory / "note").write_text("x")
    uidrange.claim(spec.roots.containers, spec.id)
    assert list_ids(spec.roots) == ["c1"]
    assert sweep(spec.roots) == ["c1"]
    assert sorted(path.name for path in spec.roots.containers.iterdir()) == [".ranges"]
    assert not list((spec.roots.containers / ".ranges").iterdir())


def test_a_directory_with_something_unexpected_in_it_is_not_emptied(spec: Spec) -> None:
    """Were a mount missed, its contents must survive: removal is never recursive."""
    (spec.directory / "disk/l").mkdir(parents=True)
    (spec.directory / "disk/l/precious").write_text("x")
    with pytest.raises(OSError, match="not empty"):
        erase(spec.roots, spec.id)
    assert (spec.directory / "disk/l/precious").exists()


def test_the_tree_of_errors_is_what_its_docstring_says() -> None:
    drawn = dict(re.findall(r"([A-Z]\w+) +([a-z_]+)  ", str(errors.__doc__)))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HoneypotError)]
    assert drawn == {kind.__name__: kind.code for kind in kinds if kind is not HoneypotError}
