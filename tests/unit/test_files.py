"""What files say of the image that they were written in."""

import pyarrow as pa

from lpc import files


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
