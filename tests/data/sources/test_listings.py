import csv
import os

import pytest

from vidtrain.data.manifest.manifest import Record
from vidtrain.data.sources.listings import Listing
from vidtrain.errors import UserError


@pytest.fixture
def listing(tmp_path):
    """Writes train.csv and val.csv and gives the source that reads them."""

    def write(train: str, val: str | None = "other.mp4,run\n", **settings) -> Listing:
        for name, text in (("train", train), ("val", val)):
            if text is not None:
                data = text.encode() if isinstance(text, str) else text
                (tmp_path / f"{name}.csv").write_bytes(data)
        files = {"train": str(tmp_path / "train.csv"), "val": val and str(tmp_path / "val.csv")}
        return Listing(**{**files, "root": "/v", **settings})

    return write


def train(source):
    return list(source.manifests()["train"])


TWO = [Record("/v/a.mp4", 0, "/v/a.mp4"), Record("/v/b.mp4", 1, "/v/b.mp4")]


@pytest.mark.parametrize(
    ("text", "val"),
    [
        ("a.mp4,jump\nb.mp4,run\n", "o.mp4,run"),
        ("a.mp4, jump \r\n\r\nb.mp4,\trun\r\n", "o.mp4,run"),
        ("\ufeffpath,label\na.mp4,jump\nb.mp4,run", "path,label\no.mp4,run"),
        ("label,extra,path\njump,1,a.mp4\nrun,2,b.mp4\n", "label,extra,path\njump,,o.mp4"),
        ("a.mp4\tjump\nb.mp4\trun\n", "o.mp4\tjump\n"),
        ("a.mp4 jump\nb.mp4   run \n", "o.mp4 jump\n"),
        ("a.mp4::jump\nb.mp4::run\n", '"o.mp4"::"jump"\n'),
        ('"a.mp4","jump"\nb.mp4,"run"\n', "o.mp4,run\n"),
        ("/v/a.mp4,jump\n./x/../b.mp4,run\n", "o.mp4,run\n"),
        ("x/..//a.mp4,jump\n/v//b.mp4,run\n", "o.mp4,run\n"),
        ("a.mp4 0\nb.mp4 1\n", "o.mp4 1\n"),
    ],
)
def test_forms_of_one_listing(listing, text, val):
    source = listing(text, val)
    assert train(source) == TWO
    assert source.manifests()["val"].classes == (("0", "1") if "0\n" in text else ("jump", "run"))


def test_paths_are_relative_to_the_file(listing, tmp_path):
    assert train(listing("a.mp4,run\n", root=None))[0].path == f"{tmp_path}/a.mp4"


def test_quoted_delimiters_and_quotes(listing):
    text = '"my videos/a, b.mp4" "long jump"\n"say ""hi"".mp4" run\n'
    found = listing(text, "o.mp4 run\n").manifests()["train"]
    assert list(found.paths) == ["/v/my videos/a, b.mp4", '/v/say "hi".mp4']
    assert found.classes == ("long jump", "run")
    found = listing('"a::b.mp4"::run\nc.mp4::run\n', "o::run").manifests()["train"]
    assert list(found.paths) == ["/v/a::b.mp4", "/v/c.mp4"]


def test_names_that_are_no_utf8_pass_through(listing):
    found = listing(b"caf\xe9.mp4,run\n", "o.mp4,run").manifests()["train"]
    assert found[0].path == "/v/caf\udce9.mp4"


def test_columns_by_name_and_number(listing):
    text = "id;x,what,clip,who\n1,run,a.mp4,anna\n2,jump,b.mp4,bert\n"
    val = "id;x,what,clip,who\n1,run,o.mp4,cleo\n"
    by_name = listing(text, val, path_column="clip", label_column="what", group_column="who")
    by_number = listing(text, val, header=True, path_column=2, label_column=1, group_column=3)
    expected = [Record("/v/a.mp4", 1, "anna"), Record("/v/b.mp4", 0, "bert")]
    assert train(by_name) == train(by_number) == expected
    bare = listing("1,run,a.mp4\n2,jump,b.mp4\n", "1,run,o.mp4\n", path_column=2, label_column=1)
    assert train(bare)[0] == Record("/v/a.mp4", 1, "/v/a.mp4")


def test_usual_columns_are_found(listing):
    text = "path,label,group,start,end\na.mp4,run,g1,1.5,4\na.mp4,run,g1,4,\nb.mp4,run,g2,,2\n"
    assert train(listing(text, "o.mp4,run")) == [
        Record("/v/a.mp4", 0, "g1", start=1.5, end=4.0),
        Record("/v/a.mp4", 0, "g1", start=4.0),
        Record("/v/b.mp4", 0, "g2", end=2.0),
    ]


def test_several_labels(listing):
    found = listing("a.mp4,run|jump\nb.mp4,jump\n", "o.mp4,run|jump\n", label_separator="|").manifests()
    assert found["train"].classes == ("jump", "run") and found["val"].multi_label
    assert [record.labels for record in found["train"]] == [(1, 0), (0,)]
    found = listing("a.mp4 2;0\nb.mp4 1\n", "o.mp4 0\n", label_separator=";").manifests()["train"]
    assert [record.labels for record in found] == [(2, 0), (1,)]


def test_classes_may_be_given(listing, tmp_path):
    (tmp_path / "classes.txt").write_text("walk\nrun\njump\n")
    (tmp_path / "classes.json").write_text('{"run": 1, "walk": 0, "jump": "2"}')
    (tmp_path / "annotations.json").write_text('{"categories": {"run": 1, "walk": 0, "jump": 2}, "train": []}')
    given = [["walk", "run", "jump"], *(str(tmp_path / name) for name in ("classes.txt", "classes.json"))]
    for classes in (*given, str(tmp_path / "annotations.json")):
        found = listing("a.mp4,jump\nb.mp4,run\n", classes=classes).manifests()["train"]
        assert found.classes == ("walk", "run", "jump")
        assert found.labels.tolist() == [2, 1]
    numbered = listing("a.mp4,2\nb.mp4,0\n", "o.mp4,1\n", classes=["walk", "run", "jump"])
    assert numbered.manifests()["train"].labels.tolist() == [2, 0]
    names = listing("a.mp4,2\nb.mp4,10\n", "o.mp4,2\n", classes=["10", "2"])
    assert names.manifests()["train"].labels.tolist() == [1, 0]


def test_integers_as_names(listing):
    found = listing("a.mp4,20\nb.mp4,5\n", "o.mp4,5\n", label_kind="names").manifests()["train"]
    assert found.classes == ("20", "5")


def test_group_pattern(listing):
    found = train(listing("x/v_g01_c1.mp4,run\nx/v_g02_c1.mp4,run\n", "g03_,run\n", group_pattern=r"g(\d+)_"))
    assert [record.group for record in found] == ["01", "02"]
    # it says more than a column does that nobody asked for
    headed = listing("path,label,group\na_1.mp4,jump,x\nb_2.mp4,run,x\n", "o_1.mp4,run\n", group_pattern=r"_(\d)")
    assert [record.group for record in train(headed)] == ["1", "2"]


def test_folders_of_images(listing):
    assert listing("a,run\nb,jump\n", "c,run\n", frame_rate=12.5).manifests()["val"].frame_rate == 12.5


def test_val_can_be_held_out(listing):
    text = "path,label,group\n" + "".join(f"{i}.mp4,{'ab'[i % 2]},g{i // 4}\n" for i in range(80))
    found = listing(text, None, val_share=0.2).manifests()
    assert [len(each) for each in found.values()] == [64, 16]
    assert not set(found["train"].columns.group_names) & set(found["val"].columns.group_names)
    assert list(listing(text, None, val_share=0).manifests()) == ["train"]
    with pytest.raises(UserError, match="there is no val split .*val_share=0.1"):
        listing(text, None).manifests()
    with pytest.raises(UserError, match="val_share=0.2, but .*source.val "):
        listing(text, "path,label,group\no,a,x\n", val_share=0.2).manifests()


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("a 1\nmy b x\nc 0\n", {}, r"train.csv:2: .my b x. is not like other lines: cut at its last space, .* quote"),
        ("a,1.mp4,run\nb.mp4,run\nc.mp4,run\n", {}, "train.csv:1: 3 fields, not 2: .* a comma inside a field"),
        ("a.mp4,run\nb.mp4\nc.mp4,run\n", {}, "train.csv:2: 1 fields, not 2: 'b.mp4'$"),
        ("a.mp4,run\n,run\n", {}, "train.csv:2: no path"),
        ("a.mp4,run\nb.mp4,\n", {}, "train.csv:2: no label"),
        ("a.mp4,0\nb.mp4,x\nc.mp4,1\nd.mp4,-1\n", {}, r"2 lines.*\n.*:2: label 'x'.*\n.*:4: label '-1'"),
        ("a.mp4,0\nb.mp4,run\n", {"label_kind": "integers"}, "train.csv:2: label 'run'"),
        ('a.mp4,run\n"b.mp4,run\nc.mp4,run\n', {}, "train.csv:2: unexpected end of data"),
        ('a.mp4,run\n"b".mp4,run\n', {}, "train.csv:2: .*expected after"),
        ("a.mp4,run\nb\0.mp4,run\n", {}, "train.csv:2: a path with a zero byte"),
        ("a.mp4,run\nb.mp4,jog;run\n", {"classes": ["run"]}, "'jog;run' is not among the classes given"),
        ("a.mp4,2\n", {"classes": ["run"]}, r"train.csv:1: label 2 is outside 0\.\.0"),
        ("a.mp4,1;1\n", {"label_separator": ";"}, "train.csv:1: a label twice"),
        ("a.mp4,1;\nb.mp4,0\n", {"label_separator": ";"}, "train.csv:1: no label"),
        ("a.mp4,3\nb.mp4,0\n", {}, "labels up to 3, but none of 2 below it, such as 1, 2: name all classes"),
        ("path,label,start\na.mp4,run,x\nb.mp4,run,-1\n", {}, "train.csv:2: 'x'.*\n.*:3: a video must"),
        ("path,label,start,end\na.mp4,run,3,3\n", {}, "train.csv:2: a video must .* end later"),
        ("path,label,group\na.mp4,run,\n", {}, "train.csv:2: no group"),
        ("x,what\na.mp4,run\n", {}, "line 1 may be a header .names of columns. or a video.*header=true"),
        ("a b,run c\n", {}, "may be comma or space.*delimiter=comma or"),
        ("a.mp4\nb.mp4\n", {}, "none of comma, tab, space, semicolon, :: cuts its lines"),
        ("a.mp4 x run\nb.mp4 y run\n", {}, "3 fields and does not name them"),
        ("a.mp4,run\n", {"delimiter": "tab"}, "its lines have one field with dataset.source.delimiter=tab"),
        ("a b;1\nb c;0\n", {}, "may be space or semicolon.*delimiter=space"),
        ("a.mp4,1;2\nb.mp4,0\n", {}, "label '1;2' looks like several.*label_separator=.;.., or, if it"),
        ("a.mp4,0\nb.mp4,1|2\n", {}, r"train.csv:2: label '1\|2' looks like several.*label_separator=.\|."),
        ('a.mp4,"1,2"\nb.mp4,x\n', {}, "train.csv:1: label '1,2' looks like several.*label_separator=.,."),
        ("a.mp4,run\n", {"path_column": 0, "label_column": "what"}, "label_column=what: .*has the columns a.mp4, run"),
        ("id,path,foo\n1,a.mp4,run\n", {"header": True}, "foo, none .* called label or labels: .*label_column="),
        ("a.mp4,run\n", {"label_column": 2}, "label_column=2: .* has 2 columns, numbered from 0"),
        ("path,label,class\na,b,c\n", {}, "has the columns label and class: .*label_column=label"),
        ("a.mp4,run\n", {"group_column": 0, "group_pattern": "a"}, "group_column and group_pattern are both given"),
        ("a.mp4,run\n", {"label_kind": "words"}, "label_kind=words: choose one of names, integers"),
        ("path,label\n", {}, "train.csv lists no videos"),
        ("\n \n", {}, "train.csv holds no lines"),
        ("a.mp4,run\na.mp4,jump\n", {}, "train lists videos more than once, with different labels"),
        ("other.mp4,run\n", {}, "both train and val hold 1 video: /v/other.mp4"),
    ],
)  # fmt: skip
def test_names_the_line_at_fault(listing, text, settings, message):
    with pytest.raises(UserError, match=message):
        listing(text, **settings).manifests()


@pytest.mark.parametrize(
    ("delimiter", "between"),
    [("comma", ","), (",", ","), ("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), ("space", " "), (" ", " "), ("::", "::"),
     ("semicolon", ";"), (";", ";")],
)  # fmt: skip
def test_a_delimiter_is_named_or_given(listing, delimiter, between):
    source = listing(f"a.mp4{between}jump\nb.mp4{between}run\n", f"o.mp4{between}run\n", delimiter=delimiter)
    assert train(source) == TWO


def test_a_semicolon_is_taken_where_nothing_else_fits(listing):
    assert train(listing("path;label\na.mp4;jump\nb.mp4;run\n", "o.mp4;run\n")) == TWO
    several = listing("a.mp4 0;1\nb.mp4 1;0\n", "o.mp4 0;1\n", label_separator=";")
    assert [record.labels for record in train(several)] == [(0, 1), (1, 0)]
    with pytest.raises(UserError, match="train.csv:3: 1 fields, not 2"):  # of commas, and no path is 'a.mp4,0'
        listing("a.mp4,0;1\nb.mp4,0;1\nc.mp4;0\n", "o.mp4,0\n", label_separator="|").manifests()


def test_classes_may_hold_what_else_separates_labels(listing):
    found = listing("a.mp4,rock|roll\nb.mp4,tea\n", "o.mp4,tea\n", classes=["tea", "rock|roll"]).manifests()
    assert found["train"].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame_rate": -1.0}, "dataset.source.frame_rate=-1.0: must be images a second"),
        (
            {"delimiter": "pipe"},
            "dataset.source.delimiter='pipe': choose one of comma, tab, space, semicolon, ::",
        ),
        ({"delimiter": ""}, "dataset.source.delimiter='': choose one of comma"),
        ({"label_separator": ""}, "label_separator must hold a character"),
        ({"group_pattern": "("}, r"group_pattern='\('"),
    ],
)
def test_settings_are_refused_before_anything_is_read(settings, message):
    with pytest.raises(UserError, match=message):
        Listing(train="none.csv", **settings)


def test_names_some_lines_and_counts_all(listing):
    text = "a.mp4,run\n" * 300 + "b.mp4,run,x\n" * 25
    with pytest.raises(UserError, match="(?s)25 lines .*:301: .*:310: .*15 more$"):
        listing(text).manifests()


def test_val_must_have_labels_of_train(listing):
    with pytest.raises(UserError, match="val.csv:2: label 'swim'"):
        listing("a.mp4,run\n", "o.mp4,run\np.mp4,swim\n").manifests()
    with pytest.raises(UserError, match=r"val.csv:1: label 2 is outside 0\.\.1"):
        listing("a.mp4,0\nb.mp4,1\n", "o.mp4,2\n").manifests()


def test_absent_file(tmp_path):
    none = str(tmp_path / "none.csv")
    with pytest.raises(UserError, match="^dataset.source.train=.*/none.csv: "):
        Listing(train=none, val_share=0.1).manifests()
    (tmp_path / "train.csv").write_text("a.mp4,run\n")
    with pytest.raises(UserError, match="source.val=null .*val_share=0.1"):
        Listing(train=str(tmp_path / "train.csv"), val=none).inputs()


def test_inputs_are_the_files(listing, tmp_path):
    source = listing("a.mp4,run", classes=str(tmp_path / "classes.txt"))
    assert [os.path.basename(path) for path in source.inputs()] == ["train.csv", "val.csv", "classes.txt"]


def test_quoting_agrees_with_the_csv_module(listing, tmp_path):
    """What the standard writer quotes is what the reader takes."""
    names = ["plain.mp4", "a,b.mp4", 'a"b.mp4', "a b.mp4", "a::b.mp4", "a\tb.mp4", "ü.mp4"]
    for delimiter in (",", "\t", " "):
        with open(tmp_path / "written", "w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([name, "run"] for name in names)
        found = listing((tmp_path / "written").read_text(), f"o.mp4{delimiter}run", delimiter=delimiter).manifests()
        assert list(found["train"].paths) == [f"/v/{name}" for name in names]


@pytest.mark.parametrize("header", ["folder,label", "clip,action", "path,action"])
def test_a_header_of_folders_is_not_taken_for_one(listing, header):
    with pytest.raises(UserError, match="line 1 .*dataset.source.header=false"):
        listing(f"{header}\na1,run\na2,walk\n", "a3,run\n", frame_rate=10.0).manifests()


def test_one_path_in_two_ways_is_one_video(listing):
    with pytest.raises(UserError, match="both train and val hold 1 video"):
        listing("a1,run\na2,walk\n", "a1/,run\n", frame_rate=10.0).manifests()


SPACED = [Record("/v/a (31).mp4", 0, "/v/a (31).mp4"), Record("/v/b.mp4", 1, "/v/b.mp4")]


@pytest.mark.parametrize(
    ("text", "val", "settings"),
    [
        ("a (31).mp4 0\nb.mp4 1\n", "o p.mp4 1\n", {}),
        ("a (31).mp4 0\nb.mp4 1\n", "o p.mp4 1\n", {"delimiter": "space"}),
        ("a (31).mp4 0\nb.mp4 1\n", "o p.mp4 1\n", {"delimiter": "last_space"}),
        ("a (31).mp4   0 \r\n\r\nb.mp4 1\r\n", "o p.mp4 1\n", {}),
        ('"a (31).mp4" 0\nb.mp4 1\n', "o p.mp4 1\n", {}),
        ("path label\na (31).mp4 0\nb.mp4 1\n", "path label\no p.mp4 1\n", {}),
        ("path n label\na (31).mp4 99 0\nb.mp4 99 1\n", "path n label\no p.mp4 3 1\n", {}),
        ("a (31).mp4 99 0\nb.mp4 99 1\n", "o p.mp4 3 1\n", {"label_column": 2, "path_column": 0}),
    ],
)
def test_paths_with_spaces_between_spaces(listing, text, val, settings):
    """The form of Kinetics' lists: cut at the last space where that makes lines whole."""
    found = listing(text, val, **settings).manifests()
    assert list(found["train"]) == SPACED
    assert found["train"].classes == ("0", "1") and found["val"][0].path == "/v/o p.mp4"


def test_the_last_space_of_names_and_of_folders(listing):
    found = listing("a (31).mp4 jump\nb.mp4 run\n", "o p.mp4 run\n").manifests()
    assert list(found["train"]) == SPACED and found["train"].classes == ("jump", "run")
    folders = listing("my a 0\nb 1\nyour old c 1\n", "o 1\n", frame_rate=10.0).manifests()["train"]
    assert list(folders.paths) == ["/v/my a", "/v/b", "/v/your old c"]
    named = listing("my a run\nb run\n", "o run\n", frame_rate=10.0, delimiter="last_space").manifests()
    assert list(named["train"].paths) == ["/v/my a", "/v/b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my a.mp4 1\nb.mp4 long jump\nc.mp4 0\n", r"csv:2: .* its last space, it is the path 'b.mp4 long' and"),
        ("my a.mp4 1\nb.mp4 0\nc.mp4\n", r"csv:3: 1 fields, not 2: 'c.mp4'"),
        ("v1 120 0\nv2 99 1\n", "3 fields and does not name them: .*delimiter=last_space"),
        ("my v1 120 0\nv2 99 1\n", "4 fields and does not name them"),
        # one line lacks the delimiter, and every line holds as many spaces
        ("my a.mp4,jump\nmy b.mp4,run\nmy c.mp4run\n", "csv:3: 1 fields, not 2: 'my c.mp4run'$"),
        ("my a.mp4,jump\nmy b.mp4 run\nmy c.mp4,run\n", "csv:2: 1 fields, not 2: 'my b.mp4 run'$"),
        ("my a.mp4\tjump\nmy b.mp4 run\nmy c.mp4\trun\n", "csv:2: 1 fields, not 2"),
        ("my a,run 0\nmy old b,run 1\n", "may be comma or last_space.*=last_space"),
        ("my a,0\nmy b,1\nmy c1\n", "may be comma or space.*delimiter=comma"),
    ],
)  # fmt: skip
def test_spaces_and_the_line_at_fault(listing, text, message):
    with pytest.raises(UserError, match=message):
        listing(text).manifests()


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("a b.mp4;1\nb c.mp4;0\n", ["/v/a b.mp4", "/v/b c.mp4"]),
        ("a,b.mp4 1\nc,d.mp4 0\n", ["/v/a,b.mp4", "/v/c,d.mp4"]),
        ("my a.mp4, 1\nyour b.mp4, 0\n", ["/v/my a.mp4", "/v/your b.mp4"]),
        ("my a, b.mp4 1\nyour, b.mp4 0\n", ["/v/my a, b.mp4", "/v/your, b.mp4"]),
    ],
)
def test_the_delimiter_that_leaves_whole_paths_is_meant(listing, text, paths):
    found = listing(text, "o.mp4,1\n").manifests()["train"]
    assert list(found.paths) == paths and found.labels.tolist() == [1, 0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_encodings_of_spreadsheets(listing, encoding, delimiter):
    text = f"path{delimiter}label\r\na.mp4{delimiter}jump\r\nb.mp4{delimiter}日本 ü\r\n"
    found = listing(text.encode(encoding), f"o.mp4{delimiter}日本 ü\n").manifests()
    assert list(found["train"]) == TWO and found["train"].classes == ("jump", "日本 ü")


def test_latin_1_is_named(listing):
    with pytest.raises(UserError, match=r"csv:2: .*'caf\\udce9' .*iconv -f latin1"):
        listing(b"a.mp4,run\nb.mp4,caf\xe9\n").manifests()
    with pytest.raises(UserError, match=r"val.csv:1: .*'caf\\udce9' .*not UTF-8"):
        listing("a.mp4,run\nb.mp4,jump\n", b"o.mp4,caf\xe9\n").manifests()
    with pytest.raises(UserError, match="UTF-16, .*; save it as UTF-8"):
        listing(b"\xff\xfea\x00b").manifests()


@pytest.mark.parametrize(
    ("labels", "settings", "classes"),
    [
        (("0.0", "10.0", "2.0"), {"classes": [*"abcdefghijk"]}, tuple("abcdefghijk")),
        (("0.0", "2.0", "1.0"), {}, ("0", "1", "2")),
        (("0", "2.0", "1."), {}, ("0", "1", "2")),
        (("0.000000e+00", "2.000000e+00", "1.000000e+00"), {}, ("0", "1", "2")),  # as numpy.savetxt has them
        (("0.0", "2.0", "1.0"), {"label_kind": "integers"}, ("0", "1", "2")),
        (("0.0", "2.0", "1.0"), {"label_kind": "names"}, ("0.0", "1.0", "2.0")),
        (("1.0", "1.1", "2.0"), {}, ("1.0", "1.1", "2.0")),  # versions are names
    ],
)
def test_integers_that_were_saved_as_floats(listing, labels, settings, classes):
    text = "".join(f"{name}.mp4,{label}\n" for name, label in zip("abc", labels, strict=True))
    found = listing(text, f"o.mp4,{labels[1]}\n", **settings).manifests()
    assert found["train"].classes == found["val"].classes == classes
    named = settings.get("label_kind") == "names" or "1.1" in classes
    expected = [classes.index(each) if named else int(float(each)) for each in labels]
    assert found["train"].labels.tolist() == expected and found["val"].labels.tolist() == expected[1:2]


@pytest.mark.parametrize(("gap", "why"), [("nan", "label 'nan'"), ("", "no label")])
def test_floats_with_a_gap_are_still_integers(listing, gap, why):
    """pandas makes floats of integers where one is missing: that one is no class of its own."""
    with pytest.raises(UserError, match=f"csv:2: {why}") as caught:
        listing(f"a.mp4,0.0\nb.mp4,{gap}\nc.mp4,1.0\n", "o.mp4,1.0\n").manifests()
    assert str(caught.value).startswith("one line cannot")
    assert listing("a.mp4,nan\nb.mp4,run\n", "o.mp4,run\n").manifests()["train"].classes == ("nan", "run")


def test_a_float_among_integers_is_a_fault(listing):
    with pytest.raises(UserError, match="csv:2: label '0.5'"):
        listing("a.mp4,0\nb.mp4,0.5\n").manifests()


def test_a_folder_that_is_not_there_is_named_by_its_setting(tmp_path):
    source = Listing(train=f"{tmp_path}/gone/train.csv", val=f"{tmp_path}/gone/val.csv", test=None)
    with pytest.raises(UserError, match="gone/train.csv: there is no such file, and no such folder; dataset.folder"):
        source.manifests()


def test_a_group_pattern_must_be_found_in_every_path(listing):
    lines = "".join(f"{name}.mp4,run\n" for name in "abcde")
    with pytest.raises(UserError, match="must be found in the path of every video; it is not in 5 of 5, such") as why:
        listing(lines, group_pattern="x").manifests()
    assert "c.mp4" in str(why.value) and "d.mp4" not in str(why.value)
