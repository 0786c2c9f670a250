"""Renders chat templates by transformers: the goldens in tests/golden/templates.

`snippets.json` holds one construct each, from `template_snippets.py`; `popular.json` holds the
conversations of `template_conversations.py` through every file of `popular/`. Run in the root of the
repository, with the packages of tools/dev-requirements.txt:

    python tools/template_goldens.py
"""

import json
import logging
import pathlib
import re

import fixed_clock  # noqa: F401
import template_conversations
import template_snippets
from transformers.utils import chat_template_utils

logging.disable(logging.WARNING)

OUT = pathlib.Path("tests/golden/templates")

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def render(template, given):
    """Text and byte ranges of `{% generation %}`, or the name of the exception."""
    given = {**SPECIAL, **given}
    messages = given.pop("messages", [])
    try:
        texts, spans = chat_template_utils.render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **given,
        )
    except Exception as e:
        return {"error": type(e).__name__}
    text = texts[0]

    def at(index):
        return len(text[:index].encode())

    generated = [[at(start), at(end)] for start, end in spans[0]]
    return {"text": text} | ({"generated": generated} if generated else {})


def write(name, value):
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in value["cases"])
    head = {k: v for k, v in value.items() if k != "cases"}
    body = json.dumps(head, ensure_ascii=False)[1:-1]
    body = body + ",\n" if body else ""
    (OUT / name).write_text("{" + body + '"cases": [\n' + lines + "\n]}\n")


def snippets():
    cases = []
    for template, refused in template_snippets.all_snippets():
        case = {"template": template}
        outcome = render(template, template_snippets.GIVEN)
        # An address is another one in every run.
        if not refused and re.search(r" at 0x[0-9a-f]+>", outcome.get("text", "")):
            refused = "printing"
        if refused:
            case["refused"] = refused
        else:
            case |= outcome
        cases.append(case)
    write("snippets.json", {"given": SPECIAL | template_snippets.GIVEN, "cases": cases})
    return cases


def popular():
    cases = []
    for path in sorted((OUT / "popular").glob("*.jinja")):
        for name, given in template_conversations.CONVERSATIONS.items():
            outcome = render(path.read_text(), given)
            cases.append({"template": path.name, "conversation": name} | outcome)
    conversations = {k: SPECIAL | v for k, v in template_conversations.CONVERSATIONS.items()}
    write("popular.json", {"conversations": conversations, "cases": cases})
    return cases


if __name__ == "__main__":
    for made in (snippets(), popular()):
        failed = sum("error" in case for case in made)
        print(len(made), "cases,", failed, "of them exceptions")
