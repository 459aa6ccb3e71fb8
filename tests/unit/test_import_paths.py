"""Import paths lead to what they name, or to one sentence."""

import pytest

from base.imports import ImportPathError, import_object
from compression.compressor import CompressorError, compressor_class
from compression.memory import memory_class
from tasks.family import FamilyError, load_family
from teacher.model import TeacherError, teacher_class


def test_what_is_named_is_found():
    assert import_object("pathlib:Path").__name__ == "Path"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../../outside", "not of the form module:Name"),
        ("..up:Name", "not of the form module:Name"),
        ("pathlib", "not of the form module:Name"),
        ("pathlib:", "not of the form module:Name"),
        ("no_such_module_here:Name", "ModuleNotFoundError"),
        ("pathlib:NoSuchName", "has no 'NoSuchName'"),
        ("raises_when_imported:Name", r"ZeroDivisionError.*PYTHONPATH"),
    ],
)
def test_what_leads_nowhere_is_told_in_one_sentence(path, said, tmp_path, monkeypatch):
    (tmp_path / "raises_when_imported.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportPathError, match=said):
        import_object(path)
    for error, load in (
        (CompressorError, compressor_class),
        (CompressorError, memory_class),
        (TeacherError, teacher_class),
        (FamilyError, lambda target: load_family(target, {})),
    ):
        with pytest.raises(error, match=said):
            load(path)
