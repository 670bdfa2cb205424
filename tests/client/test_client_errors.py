"""The errors themselves: what ``str`` says, and that one crosses the wire and a pickle as itself."""

from __future__ import annotations

import pickle

from offrl import errors


def test_the_text_of_an_error_is_its_message_and_its_hint():
    error = errors.Unknown("no algorithm 'bcc'", hint="did you mean 'bc'?")
    assert (error.message, error.hint) == ("no algorithm 'bcc'", "did you mean 'bc'?")
    assert str(error) == "no algorithm 'bcc'; did you mean 'bc'?"
    assert str(errors.Unknown("no algorithm 'bcc'")) == "no algorithm 'bcc'"


def test_the_hint_crosses_the_wire_and_a_pickle_once():
    error = errors.Unknown("no algorithm 'bcc'", hint="did you mean 'bc'?")
    for copy in (errors.from_wire(**errors.to_wire(error)), pickle.loads(pickle.dumps(error))):
        assert type(copy) is errors.Unknown
        assert str(copy) == str(error)
        assert copy.message == error.message
