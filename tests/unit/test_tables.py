"""Tables of cases as people write them."""

import pytest
from conftest import write_folder, write_nifti

from segpipe.config.sections import DataConfig, SplitConfig
from segpipe.data import raw, splits, tables
from segpipe.data.readers import all_cases
from segpipe.data.readers.folder import FolderReader
from segpipe.data.readers.nifti import NiftiReader
from segpipe.errors import InputError

PAIRS = {"case0": "p0", "case1": "p0", "case2": "p1", "case3": "p1"}


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "data", cases=4)


def cases(root):
    return all_cases(FolderReader(DataConfig(format="folder", root=str(root), channels=("grey",))))


def patients(root):
    return {case.name: case.patient for case in cases(root)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cases.csv", "case,patient\ncase0,p0\ncase1,p0\ncase2,p1\ncase3,p1\n"),
        ("cases.csv", "case, patient, site\ncase0, p0, a\ncase1, p0, a\ncase2, p1, a\ncase3, p1 ,a\n"),
        ("Cases.csv", "Case;Patient\ncase0;p0\ncase1;p0\ncase2;p1\ncase3;p1\n"),
        ("participants.tsv", "case\tpatient_id\ncase0\tp0\ncase1\tp0\ncase2\tp1\ncase3\tp1\n"),
        ("participants.csv", "image,Subject ID\ncase0.png,p0\ncase1.PNG,p0\ncase2.png,p1\ncase3.png,p1\n"),
        ("patients.txt", "\ufefffile name\tpatient\n\ncase0\tp0\n\ncase1\tp0\ncase2\tp1\ncase3\tp1\n\t\t\n"),
    ],
)
def test_a_table_is_read_however_it_is_written(root, name, text):
    (root / name).write_text(text, encoding="utf-8")
    assert patients(root) == PAIRS


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("cases.csv", "case,patient\n", r"cases.csv: a header without rows; fill it in, or remove it"),
        ("cases.csv", "", r"cases.csv: empty; fill it in"),
        ("cases.xlsx", "PK", r"cases.xlsx: a spreadsheet is not read; save it as cases.csv"),
        ("cases.csv", "name,patient\nx,y", r"no column of cases among name, patient; call it case"),
        ("cases.csv", "case,patient,Patient ID\na,b,c", r"columns patient and Patient ID both mean patient; keep one"),
        ("cases.csv", "case,patient\ncase0,p0\ncase1,\n", r"case 'case1' has no patient, like 1 of 2 rows; write it"),
        ("cases.csv", "case,patient\ncase0,p0\ncase1,n/a\n", r"case 'case1' has no patient, like 1 of 2 rows"),
        ("cases.csv", "case,patient\ncase0,p0\ncase1,NA\n", r"case 'case1' has no patient, like 1 of 2 rows"),
        ("cases.csv", "case,patient\ncase0,p0\n,p1\n", r"cases.csv, line 3: no case; name one"),
        ("cases.csv", "case\ncase0\ncase0.png\n", r"cases.csv, line 3: case 'case0' stands twice"),
        ("cases.csv", "case,split\ncase0,dev\n", r"cases.csv, line 2: split 'dev'; allowed: train, val, test"),
        ("cases.csv", "case,dice\ncase0,1\n", r"column 'dice' has the name of one of the results"),
        ("cases.csv", "case\ncase0\ncase1\ncase2\ncase3\ncase9\n", r"cases.csv: case 'case9' has no image"),
    ],
)
def test_a_table_that_is_not_understood_is_refused_with_the_line_and_the_mend(root, name, text, told):
    (root / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        cases(root)


def test_two_tables_are_one_too_many(root):
    for name in ("cases.csv", "participants.tsv"):
        (root / name).write_text("case\ncase0\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"cases.csv and participants.tsv both say who is who; keep one"):
        cases(root)


def test_names_are_compared_in_one_form_of_unicode(root):
    for folder in ("images", "masks"):
        (root / folder / "case0.png").rename(
            root / folder / ("M\u00fcller.png" if folder == "images" else "Mu\u0308ller.png")
        )
    (root / "cases.csv").write_text("case,patient\nMu\u0308ller,p\ncase1,p\ncase2,q\ncase3,q\n", encoding="utf-8")
    assert patients(root)["M\u00fcller"] == "p"


def test_files_of_the_system_and_strangers_beside_the_data_are_no_data(root):
    before = raw.files(DataConfig(format="folder", root=str(root)))
    for name in ("images/Thumbs.db", "masks/desktop.ini", "images/._case0.png", "notes.txt", "more/x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    assert raw.files(DataConfig(format="folder", root=str(root))) == before
    assert len(cases(root)) == 4
    (root / "cases.csv").write_text("case\ncase0\ncase1\ncase2\ncase3\n", encoding="utf-8")
    assert set(raw.files(DataConfig(format="folder", root=str(root)))) == {*before, "cases.csv"}


@pytest.mark.parametrize("prefix", ["sub-", ""])
def test_a_table_of_subjects_names_each_that_has_a_folder_and_no_other(tmp_path, prefix):
    root = write_nifti(tmp_path / "data")
    reader = NiftiReader(DataConfig(format="nifti", root=str(root), channels=("dwi", "adc")))
    rows = "".join(f"{prefix}case{n}\tp{n // 2}\n" for n in range(4))
    (root / "participants.tsv").write_text(f"participant_id\tpatient\n{rows}", encoding="utf-8")
    assert [case.patient for case in all_cases(reader)] == ["p0", "p0", "p1", "p1"]
    (root / "participants.tsv").write_text(f"participant_id\n{prefix}case0\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"participants.tsv: case 'sub-case1' is not listed"):
        all_cases(reader)
    (root / "participants.tsv").write_text(f"participant_id\tpatient\n{rows}{prefix}case9\tp9\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"participants.tsv: case 'sub-case9' has no folder"):
        all_cases(reader)


@pytest.mark.parametrize(("image", "mask"), [("", "_mask"), ("_img", ""), ("-image", "_segmentation"), (" (1)", "")])
def test_names_match_without_what_all_of_them_end_with(root, image, mask):
    for folder, end in (("images", image), ("masks", mask)):
        for path in sorted((root / folder).iterdir()):
            path.rename(path.with_name(f"{path.stem}{end}{path.suffix.upper()}"))
    assert [case.name for case in cases(root)] == [*PAIRS]
    (root / "masks" / f"case3{mask}.PNG").rename(root / "masks" / "other.png")
    with pytest.raises(InputError, match=r"case\d.*: no mask of the same name"):
        cases(root)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "TEST"), ("train", "test")])
def test_folders_of_splits_are_splits(tmp_path, names):
    from segpipe.data.readers import detect

    root = tmp_path / "data"
    for name in names:
        write_folder(root / name, cases=3)
    assert detect(str(root)) == "folder"
    found = cases(root)
    wanted = {tables.SPLITS[name.lower()] for name in names}
    assert {case.split for case in found} == wanted
    assert sorted(case.name for case in found) == sorted(f"{split}_case{n}" for split in wanted for n in range(3))
    if "train" in names:
        assert len(raw.files(DataConfig(format="folder", root=str(root)))) == 6 * len(names)


def test_a_folder_and_a_table_that_disagree_on_a_split_are_refused(tmp_path):
    root = tmp_path / "data"
    for name in ("train", "test"):
        write_folder(root / name, cases=2)
    (root / "cases.csv").write_text("case,split\ntrain_case0,test\ntrain_case1,\ntest_case0,\ntest_case1,\n")
    with pytest.raises(InputError, match=r"case0.png: lies under train, but the table says test; move it"):
        cases(root)
    write_folder(root / "training", cases=1)
    with pytest.raises(InputError, match=r"train and training both stand for train; keep one"):
        cases(root)


def test_validation_is_drawn_by_patient_where_only_training_and_test_are_given(tmp_path):
    root = write_folder(tmp_path / "data", cases=20)
    rows = [f"case{n},p{n // 2},{'test' if n >= 14 else 'train'}" for n in range(20)]
    (root / "cases.csv").write_text("case,patient,split\n" + "\n".join(rows), encoding="utf-8")
    found = cases(root)
    sides = splits.assign(found, SplitConfig(), 0)
    assert splits.carves_validation(found)
    assert {patient for patient, side in sides.items() if side == "test"} == {"p7", "p8", "p9"}
    assert sorted(sides.values()).count("val") == 2
    assert splits.assign(found, SplitConfig(), 0) == sides
    assert "val" not in splits.assign(found, SplitConfig(val=0.0), 0).values()
