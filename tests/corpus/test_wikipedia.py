"""The bundled articles, and WikiText turned back into prose."""

import re

import pytest

from attnopt.corpus import wikipedia as wiki


def test_the_sample_has_its_articles_and_no_markup() -> None:
    articles = list(wiki.sample_articles())
    assert len(articles) == 107
    text = "\n".join(body for _, body in articles)
    assert 2_400_000 < len(text.encode()) < 3_200_000
    assert not re.search(r"\[\[|\{\{|\{\||'''|<ref|https?://", text)
    assert all(body.startswith(f"= {title} =") for title, body in articles)
    lines = [line for line in text.split("\n") if line and not line.startswith("=")]
    assert all(len(line.split()) >= 6 for line in lines)


@pytest.mark.slow
def test_the_bundled_articles_are_what_the_tool_makes_of_the_dump() -> None:
    pytest.importorskip("gensim")
    from attnopt.tools.enwiki import dump_articles, dump_path

    assert list(dump_articles(dump_path())) == wiki.sample_articles()


def test_wikitext_is_turned_back_into_prose() -> None:
    text = (
        " = Title = \n \n The role @-@ playing game ( 1 @,@ 000 copies ) sold well . It 's <unk> here . "
        'He said " so it is " and left . \n'
    )
    assert wiki.undo_wikitext(text) == (
        '= Title =\n\nThe role-playing game (1,000 copies) sold well. He said "so it is" and left.\n'
    )
