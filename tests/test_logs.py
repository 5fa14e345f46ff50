import errno

import pytest

from purerl.logs import STEPS, CsvLog, TensorBoardLog, read_rows


def test_rows_survive_a_cut_line_and_drop_what_lies_beyond(tmp_path):
    log = CsvLog(tmp_path)
    for steps in (10, 20, 30):
        log.write({STEPS: steps, "x": steps / 10})
    log.close()
    with open(tmp_path / "progress.csv", "a") as file:
        file.write("40,4")  # killed while writing
    header, rows = read_rows(tmp_path / "progress.csv")
    assert [row[STEPS] for row in rows] == ["10", "20", "30"]
    log = CsvLog(tmp_path, keep_steps=20)
    log.write({STEPS: 30, "x": 9.0})
    log.close()
    assert (tmp_path / "progress.csv").read_text() == f"{STEPS},x\n10,1.0\n20,2.0\n30,9.0\n"
    assert header == [STEPS, "x"]


@pytest.mark.parametrize("kind", [CsvLog, TensorBoardLog])
def test_a_full_disk_is_told_with_the_path(tmp_path, kind):
    log = kind(tmp_path / "here")
    if kind is TensorBoardLog:
        log._writer._py_recordio_writer._writer = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    else:
        log._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device.*here") as caught:
        log.write({STEPS: 10, "x": 1.0})
    assert caught.value.errno == errno.ENOSPC
    log.close()


def test_a_new_log_starts_empty(tmp_path):
    CsvLog(tmp_path / "new").close()
    assert read_rows(tmp_path / "new" / "progress.csv") == ([], [])
