"""A check of an exercise's answers, for the tests of several notebooks."""

from collections.abc import Callable, Iterable

from ppo_lib.course.exercises import examine, find


def each_gets_its_sentence(name: str, answers: Iterable[tuple[Callable, str]]) -> None:
    """Right answers ("") are solved, wrong ones get a sentence with these words, and all sentences are shown."""
    exercise, said = find(name), set()
    for answer, words in answers:
        status, sentence = examine(exercise, answer)
        assert (status, words in sentence) == ("wrong" if words else "solved", True), sentence
        said.add(sentence)
    assert said == {"", *exercise.mistakes}
