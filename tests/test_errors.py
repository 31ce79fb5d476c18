from cxrl.errors import CxrlError, unknown_name


def test_the_nearest_name_is_suggested():
    error = unknown_name("reward", "postur", ["posture", "diagnosis"])
    assert isinstance(error, CxrlError)
    assert str(error) == "unknown reward 'postur'; did you mean posture?"


def test_equally_near_names_are_all_suggested():
    assert "did you mean ab2 or ab1?" in str(unknown_name("x", "ab", ["ab1", "ab2", "zz"]))


def test_without_a_near_name_the_first_five_are_listed():
    message = str(unknown_name("preset", "qqq", ["smoke", "phantom"]))
    assert message == "unknown preset 'qqq'; known: phantom, smoke"
    assert str(unknown_name("preset", "x", [])).endswith("known: none")
    many = [f"name-{i}" for i in range(50)]
    assert str(unknown_name("x", "qqq", many)).endswith(
        "known: name-0, name-1, name-10, name-11, name-12 and 45 more"
    )
