"""Every class has a consequence, and the tree at the top of the file is the tree of the code."""

import inspect

from harness import errors
from scenarios.errors import AutotuneError


def test_every_error_has_a_row():
    defined = {
        c
        for _, c in inspect.getmembers(errors, inspect.isclass)
        if issubclass(c, AutotuneError) and c.__module__ == errors.__name__
    }
    assert defined == set(errors.CONSEQUENCES)


def test_every_error_is_drawn_in_the_tree():
    for error in errors.CONSEQUENCES:
        assert error.__name__ in errors.__doc__, error


def test_exit_codes_follow_the_root():
    assert errors.ModelNotFound("x").exit_code == 2
    assert errors.DownloadFailed("x").exit_code == 3
    assert errors.EngineHung("x").exit_code == 3
