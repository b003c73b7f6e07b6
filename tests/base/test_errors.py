"""What a person reads of an error, and how errors travel."""

from kit.base import CommandFailed, KitError


def test_an_error_shows_what_was_tried_what_came_back_and_the_next_step():
    error = KitError("opened the box", got="a spring", next_step="close it")
    assert str(error) == "opened the box\n  got:  a spring\n  next: close it"
    assert str(KitError("only this")) == "only this"


def test_a_failed_command_keeps_its_fields_through_pickling_between_processes():
    import pickle

    error = CommandFailed(["ls", "x"], 2, "", "no such file\n", "look")
    again = pickle.loads(pickle.dumps(error))
    assert (again.argv, again.code, again.err) == (("ls", "x"), 2, "no such file\n")
    assert "exit code 2" in str(again)
    assert "no such file" in str(again)
