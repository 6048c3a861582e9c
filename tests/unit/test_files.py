"""How files are written: whole or not at all, on the disk, readable by those who may, and with the image's name."""

import errno
import gc
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest

from lpc import files
from lpc.cli import Stopped, UserError

SOURCE = Path(__file__).resolve().parents[2] / "src"


# ---- the image in the files


def test_json_and_parquet_name_the_image_they_were_written_in(tmp_path, monkeypatch):
    monkeypatch.setenv("APPTAINER_CONTAINER", str(tmp_path / "training-0123.sif"))
    (tmp_path / "training-0123.json").write_text('{"sha256": "ab"}')
    image = {"image": "training-0123.sif", "sha256": "ab"}
    files.write_json(tmp_path / "object.json", {"n": 1})
    assert files.read_json(tmp_path / "object.json") == {"n": 1, "container": image}
    files.write_json(tmp_path / "list.json", [1])
    assert files.read_json(tmp_path / "list.json") == [1]
    table = pa.table({"n": [1]})
    files.write_parquet(tmp_path / "table.parquet", table, {"container": "of an input", "spec": 2})
    assert files.parquet_metadata(tmp_path / "table.parquet") == {"container": image, "spec": 2}


def test_outside_of_a_container_nothing_is_added(tmp_path, monkeypatch):
    monkeypatch.delenv("APPTAINER_CONTAINER", raising=False)
    monkeypatch.delenv("SINGULARITY_CONTAINER", raising=False)
    files.write_json(tmp_path / "object.json", {"n": 1})
    files.write_parquet(tmp_path / "table.parquet", pa.table({"n": [1]}))
    assert files.read_json(tmp_path / "object.json") == {"n": 1}
    assert files.parquet_metadata(tmp_path / "table.parquet") == {}


def test_torn_record_of_an_image_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("APPTAINER_CONTAINER", str(tmp_path / "training-0123.sif"))
    for text in ('{"sha2', "[]", "{}", "\x00\x00"):
        (tmp_path / "training-0123.json").write_text(text)
        with pytest.raises(UserError, match=r"training-0123\.json: must be a JSON object with sha256"):
            files.write_json(tmp_path / "object.json", {})


# ---- Parquet in parts


@pytest.mark.parametrize("count", [0, 1, files.BATCH, 2 * files.BATCH + 1])
def test_rows_are_written_and_read_in_parts(tmp_path, count):
    path, schema = tmp_path / "rows.parquet", pa.schema({"n": pa.int64(), "text": pa.string()})
    rows = [{"text": f"row {n}", "n": n} for n in range(count)]
    files.write_rows(path, iter(rows), schema, {"spec": 1})
    assert files.parquet_metadata(path)["spec"] == 1
    assert files.read_parquet(path).equals(pa.Table.from_pylist(rows, schema=schema))
    first, *parts = files.read_batches(path)
    assert first.num_rows == 0 and first.schema.equals(schema)
    assert all(0 < part.num_rows <= files.BATCH for part in parts)
    assert [row for part in parts for row in part.to_pylist()] == [{"n": row["n"], "text": row["text"]} for row in rows]


# ---- refused writes, on a real file system that is full


def big_tensor():
    import torch

    return {"weight": torch.randn(2**19, generator=torch.Generator().manual_seed(0))}


def write_safetensors(path):
    import safetensors.torch

    safetensors.torch.save_file(big_tensor(), path)


def write_torch(path):
    import torch

    torch.save(big_tensor(), path)


def write_tokenizer(path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"word{number}": number for number in range(60_000)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)


def write_figure(path):
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=200)
    FigureCanvasAgg(figure)
    figure.add_axes((0, 0, 1, 1)).imshow(np.random.default_rng(0).random((1000, 1000)))
    figure.savefig(path)


def write_stream(path):
    with open(path, "w") as stream:
        stream.write("x" * 2**21)


def inside(writer):
    def write(path):
        with files.atomic(path) as temporary:
            writer(temporary)

    return write


def random_table():
    import numpy as np

    return pa.table({"x": np.random.default_rng(0).random(2**18)})


WRITERS = {
    "a.json": lambda path: files.write_json(path, ["x" * 2**21]),
    "a.parquet": lambda path: files.write_parquet(path, random_table()),
    "a.txt": inside(write_stream),
    "a.safetensors": inside(write_safetensors),
    "a.pt": inside(write_torch),
    "a.png": inside(write_figure),
    "tokenizer": inside(write_tokenizer),
}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "none", str(folder)]
    result = subprocess.run(mount, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"no right to mount a small file system: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_ends_in_one_line_and_leaves_what_was_there(small_disk, name):
    path = small_disk / name
    if name == "tokenizer":
        path.mkdir()
        (path / "old").write_text("whole")
    else:
        path.write_text("whole")
    before = os.statvfs(small_disk).f_bavail
    with pytest.raises(UserError) as caught:
        WRITERS[name](path)
    message = str(caught.value)
    del caught  # the traceback keeps torch's file open, and with that its space
    gc.collect()
    assert message.startswith(f"{path}: No space left on device"), message
    assert re.search(r"; its file system has [\d,]+ bytes free; free space there, then rerun$", message), message
    assert os.statvfs(small_disk).f_bavail == before
    assert [entry.name for entry in small_disk.iterdir()] == [name]
    assert (path / "old" if name == "tokenizer" else path).read_text() == "whole"


def test_full_disk_is_found_behind_an_error_that_hides_it(small_disk):
    with pytest.raises(UserError, match=r"No space left on device \(unexpected pos\)"), files.atomic(small_disk / "a"):
        (small_disk / "other").write_bytes(bytes(2**20 - 2**15))
        raise RuntimeError("unexpected pos")
    with pytest.raises(Stopped, match="saved"), files.atomic(small_disk / "a"):
        raise Stopped("saved")


def test_disk_that_is_full_of_files(small_disk):
    subprocess.run(["mount", "-o", "remount,nr_inodes=4", str(small_disk)], check=True)
    files.write_text(small_disk / "a", "1")
    (small_disk / "b").touch()
    (small_disk / "c").touch()
    with pytest.raises(UserError, match="No space left on device; its file system has no free inodes"):
        files.write_text(small_disk / "a", "2")
    assert (small_disk / "a").read_text() == "1"


def test_read_only_file_system(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"new/a: Read-only file system; .*; use a folder on a writable file system"):
        files.write_text(small_disk / "new/a", "text")


def test_folder_without_the_right_to_write(tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"a: Permission denied; .*; check the permissions, then rerun"):
            files.write_text(tmp_path / "a", "text")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


def test_file_above_the_limit_of_its_size(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, limits[1]))
    try:
        with pytest.raises(UserError, match=r"a: File too large; .*; raise the limit on a file's size"):
            files.write_text(tmp_path / "a", "x" * 2**11)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_exceeded_quota(tmp_path):
    message = r"a: Disk quota exceeded; .*; delete your files there, or ask"
    with pytest.raises(UserError, match=message), files.atomic(tmp_path / "a"):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    with pytest.raises(UserError, match="Disk quota exceeded"), files.atomic(tmp_path / "a"):
        raise ValueError(f"Error while serializing: Disk quota exceeded (os error {errno.EDQUOT})")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/input"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        ConnectionError("no route"),
        ValueError("our bug"),
        UserError("already one line"),
        Stopped("saved"),
        KeyboardInterrupt(),
    ],
)
def test_other_failures_pass_unchanged_and_leave_nothing(tmp_path, error):
    with pytest.raises(type(error)) as caught, files.atomic(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


# ---- on the disk, and readable


def test_synchronized_before_the_rename_and_the_name_after_it(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def name(path):
        return re.sub(r"^\.model\..*?(/|$)", r"holder\1", os.path.relpath(path, tmp_path))

    def recorded_fsync(descriptor):
        events.append(name(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def recorded_replace(source, target):
        events.append(f"{name(source)} -> {name(target)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    with files.atomic(tmp_path / "model") as temporary:
        (temporary / "part").mkdir(parents=True)
        (temporary / "part/weights").write_text("w")
    assert events == [
        "holder/model/part/weights",
        "holder/model/part",
        "holder/model",
        "holder/model -> model",
        ".",
    ]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_permissions_are_those_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with files.atomic(tmp_path / "new/model") as temporary:
            temporary.mkdir()
            write_safetensors(temporary / "model.safetensors")  # which creates it with 0600
        files.write_json(tmp_path / "new/a.json", {})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
    assert modes == {"model": 0o777 & ~umask, "model.safetensors": 0o666 & ~umask, "a.json": 0o666 & ~umask}


# ---- replacement of a folder, and what killed processes leave


def test_folder_is_replaced_as_a_whole(tmp_path):
    for content in ("old", "new"):
        with files.atomic(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]


def test_old_folder_comes_back_where_it_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old").touch()

    def refuse(source, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(UserError, match="check the disk"), files.atomic(tmp_path / "model") as temporary:
        temporary.mkdir()
        monkeypatch.setattr(os, "replace", refuse)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old"]


def start(code: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


WRITING = """
    import sys
    from lpc import files
    with files.atomic(sys.argv[1]) as temporary:
        temporary.write_text("half")
        print("written", flush=True)
        sys.stdin.readline()
        temporary.write_text("whole")
    """


def test_leftovers_go_only_of_processes_that_died_on_this_machine(tmp_path):
    path = tmp_path / "a.json"
    alive, killed = start(WRITING, path), start(WRITING, path)
    for process in (alive, killed):
        assert process.stdout.readline() == "written\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    elsewhere = tmp_path / ".a.json.00000000-1-1.00000000"
    other_file = tmp_path / ".a.json.parquet.00000000-1-1.00000000"
    elsewhere.mkdir()
    other_file.mkdir()
    assert len(list(tmp_path.iterdir())) == 4
    files.write_json(path, {})
    assert len(list(tmp_path.iterdir())) == 4  # one folder less, one file more
    assert elsewhere.exists() and other_file.exists() and json.loads(path.read_text()) == {}
    alive.communicate("\n", timeout=30)
    assert alive.returncode == 0 and path.read_text() == "whole"
    assert set(tmp_path.iterdir()) == {path, elsewhere, other_file}


def test_kill_between_the_renames_leaves_old_and_new(tmp_path):
    """The window is two system calls; before, the old folder was deleted file by file."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    process = start(
        """
        import os, sys
        from lpc import files
        with files.atomic(sys.argv[1]) as temporary:
            temporary.mkdir()
            (temporary / "new").touch()
            os.replace = lambda source, target: os.kill(os.getpid(), 9)
        """,
        path,
    )
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    [folder] = tmp_path.iterdir()
    assert {str(file.relative_to(folder)) for file in folder.rglob("*/*")} == {"model/new", "model.replaced/old"}


# ---- unreadable content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"a": ', "Expecting value"),
        (b"\xff\xfe\x00", "utf-8"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": ' + b"9" * 400 + b"}", "the number 9999999999... with 400 characters is not finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the number 9999999999... with 5000 characters is not finite"),
        (b"-1e400", "the number -1e400 is not finite"),
        (b"NaN", "the number NaN is not finite"),
    ],
)
def test_content_that_is_not_json(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        files.read_json(path)
    assert str(caught.value).startswith(f"{path}: not valid JSON (") and reason in str(caught.value)


def test_numbers_that_are_read(tmp_path):
    (tmp_path / "a.json").write_text("[0, -7, 18446744073709551616, 1.5, 1e300]")
    assert files.read_json(tmp_path / "a.json") == [0, -7, 2**64, 1.5, 1e300]


def test_folder_or_nothing_in_place_of_json(tmp_path):
    with pytest.raises(UserError, match="must be a JSON file, but is a folder"):
        files.read_json(tmp_path)
    with pytest.raises(UserError, match="a: no such file"):
        files.read_json(tmp_path / "a")


def test_lone_surrogate_is_named_and_not_written(tmp_path):
    with pytest.raises(UserError, match=r"a: lone surrogate in the text 'bad \\ud800 text'"):
        files.write_text(tmp_path / "a", json.loads(r'"bad \ud800 text"'))
    with pytest.raises(UserError, match="lone surrogate"):
        files.write_json(tmp_path / "a", {"prompt": "\udfff"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"text", b"PAR1" + bytes(100) + b"PAR1"])
def test_file_that_is_not_parquet(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    for read in (files.read_parquet, files.parquet_metadata, lambda path: list(files.read_batches(path))):
        with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file"):
            read(path)
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path / "missing")


def test_truncated_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    files.write_parquet(path, random_table())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[-2000:])
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file"):
        files.read_parquet(path)
