"""What the demo says at its end."""

from nnunet_kd.cli.demo_page import SHORT, Result, in_words, result_table

RESULTS = {
    "teacher": Result({"oedema": 0.7, "enhancing": 0.5}, 1_600_000, 4.0),
    "NoKD": Result({"oedema": 0.6, "enhancing": 0.0}, 100_000, 3.0),
    "KD": Result({"oedema": 0.7, "enhancing": 0.4}, 100_000, 3.0),
    "KD, exported": Result({"oedema": 0.7, "enhancing": 0.4}, 100_000, 0.5),
}


def test_it_says_what_came_out_and_what_was_not_found():
    assert in_words(RESULTS) == [
        "KD is the best student here: its mean Dice is 0.550, the teacher's is 0.600, and it has 1/16 of the teacher's "
        "parameters.",
        "Exported and run without PyTorch and nnU-Net, its mean Dice is 0.550.",
        "NoKD finds next to nothing of enhancing: so few iterations are not enough for it, which a longer training "
        "mends.",
        SHORT,
    ]


def test_a_student_above_its_teacher_is_explained():
    said = in_words({**RESULTS, "NoKD": Result({"oedema": 0.9, "enhancing": 0.8}, 100_000, None)})
    assert said[0].startswith("NoKD is the best") and said[1].startswith("It is above its teacher because")
    assert not any("above its teacher" in sentence for sentence in in_words(RESULTS))


def test_a_student_cannot_find_what_its_teacher_does_not():
    blind = {"teacher": Result({"a": 0.7, "b": float("nan")}, 10, 1.0), "KD": Result({"a": 0.7, "b": 0.0}, 5, 1.0)}
    said = in_words(blind)
    assert said[1].startswith("teacher finds next to nothing of b: so few iterations")
    assert said[2].startswith("KD finds next to nothing of b: its teacher does not find it either")


def test_the_table_tells_the_seconds_of_both_commands():
    table = result_table(RESULTS)
    assert table.header == ["", "oedema Dice", "enhancing Dice", "parameters", "s per case, stock", "s per case, ours"]
    assert table.rows[0] == ["teacher", "0.700", "0.500", "1,600,000", "4.00", "-"]
    assert table.rows[3] == ["KD, exported", "0.700", "0.400", "100,000", "-", "0.50"]
