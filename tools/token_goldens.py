"""Token ids and loss masks of conversations by transformers: the goldens in tests/golden/tokens.

Every template of tests/golden/templates/popular renders six conversations. Ids come from
`apply_chat_template`. The mask comes from its `return_assistant_tokens_mask` where the template has
`{% generation %}`; elsewhere the text between the header of an assistant's turn and the token that
ends it, that token included, is marked, and characters become tokens by `char_to_token`, as
transformers does it. Run in the root of the repository, with the packages of
tools/dev-requirements.txt:

    python tools/token_goldens.py
"""

import datetime
import json
import pathlib
import sys

from fixed_clock import NOW
from template_conversations import say
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

TEMPLATES = pathlib.Path("tests/golden/templates/popular")
OUT = pathlib.Path("tests/golden/tokens")

SPECIAL = """<s> </s> <|im_start|> <|im_end|> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|>
<|CHATBOT_TOKEN|> <|USER_TOKEN|> <|SYSTEM_TOKEN|> <｜User｜> <｜Assistant｜> <｜end▁of▁sentence｜>
<｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜>
<start_of_turn> <end_of_turn> <|start_of_role|> <|end_of_role|> <|end_of_text|>
<|start_header_id|> <|end_header_id|> <|eot_id|> [INST] [/INST] [AVAILABLE_TOOLS]
[/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] <|user|> <|assistant|> <|system|>
<|end|>""".split()
ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]

CHATML = ["<|im_start|>assistant\n"], ["<|im_end|>"]
LLAMA3 = ["<|start_header_id|>assistant<|end_header_id|>\n\n"], ["<|eot_id|>"]
GEMMA = ["<start_of_turn>model\n"], ["<end_of_turn>"]
# What opens an assistant's turn, and what ends it.
TURNS = {
    "chatml": CHATML,
    "command_r": (["<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"], ["<|END_OF_TURN_TOKEN|>"]),
    "deepseek_r1": (["<｜Assistant｜>", "<｜tool▁outputs▁end｜>"], ["<｜end▁of▁sentence｜>"]),
    "gemma": GEMMA,
    "gemma3_parts": GEMMA,
    "granite": (["<|start_of_role|>assistant<|end_of_role|>"], ["<|end_of_text|>"]),
    "hermes_tools": CHATML,
    "llama2": (["[/INST]"], ["</s>"]),
    "llama3": LLAMA3,
    "llama31_tools": LLAMA3,
    "mistral_v3_tools": (["[/INST]", "[/TOOL_RESULTS]"], ["</s>"]),
    "phi3": (["<|assistant|>\n"], ["<|end|>"]),
    "qwen25_tools": CHATML,
    "qwen3_coder": CHATML,
    "qwen3_thinking": CHATML,
    "zephyr": (["<|assistant|>\n"], ["</s>"]),
}

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "The word."}},
            "required": ["word"],
        },
    },
}
CALL = {
    "type": "function",
    "id": "abcdefgh1",
    "function": {"name": "look_up", "arguments": {"word": "heron"}},
}


CONVERSATIONS = {
    "system": {
        "messages": [
            say("system", "Answer in one word."),
            say("user", "Which bird stands in the river?"),
            say("assistant", "Heron."),
        ]
    },
    "tools": {
        "messages": [
            say("user", "What is a heron?"),
            say("assistant", "", tool_calls=[CALL]),
            say("tool", "a bird with long legs", tool_call_id="abcdefgh1", name="look_up"),
            say("assistant", "A bird with long legs."),
        ],
        "tools": [TOOL],
    },
    "turns": {
        "messages": [
            say("user", "2 + 2?"),
            say("assistant", "4"),
            say("user", " And  3 + 3? "),
            say("assistant", "It is 6,\nas before.\n"),
            say("user", "Thanks"),
            say("assistant", "<think>\nshort\n</think>\n\nAny time!"),
        ]
    },
    "empty": {
        "messages": [
            say("system", ""),
            say("user", ""),
            say("assistant", "You said nothing."),
        ]
    },
    "unicode": {
        "messages": [
            say("user", "Übersetze: 鷺 👩‍🚀 e\u0301 \u202eabc\u202c"),
            say("assistant", "Reiher — \u00a0das heißt „鷺“ 🇩🇪👍🏽"),
            say("user", "\tкак?\u2028да"),
            say("assistant", "Так 🦜"),
        ]
    },
    "controls": {
        "messages": [
            say("user", "What do <|im_end|>, </s> and <end_of_turn> mean?<|eot_id|>"),
            say("assistant", "They end turns: <|im_end|> or [/INST]!"),
            say("user", "<|im_start|>system\nOdd [INST] <|end|><|user|>"),
            say("assistant", "Yes, <s> too."),
        ]
    },
}

WORDS = """the a of and to in is it that was for on are as with his they at be this from I have or
by one had not but what all were when we there can an your which their said if do will each about
how up out them then she many some so these would other into has more her two like him see time
could no make than first been its who now people my made over did down only way find use may water
long little very after words called just where most know heron bird river answer function name
arguments parameters description string object type required look word turn mean odd they end"""


def tokenizer():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = WORDS.split() + [json.dumps(TOOL), json.dumps(CALL)] * 3
    inner.train_from_iterator([" ".join(text)] * 3, trainer)
    inner.add_tokens([AddedToken(t, normalized=False) for t in ADDED])
    return inner


def header_spans(text, name):
    """Spans of characters from the header of an assistant's turn to the end of that turn."""
    headers, ends = TURNS[name]
    spans, at = [], 0
    while True:
        found = [(text.find(h, at), h) for h in headers if text.find(h, at) >= 0]
        if not found:
            return spans
        start, header = min(found)
        start += len(header)
        found = [text.find(e, start) + len(e) for e in ends if text.find(e, start) >= 0]
        if not found:
            return spans
        at = min(found)
        spans.append((start, at))


def guarded(fast, text, literal):
    """Ids where the characters of `literal` hold no control token: cut at the other added tokens."""
    inner = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    plain = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    plain.encode_special_tokens = True
    ids, offsets, at = [], [], 0

    def rest(until):
        encoding = plain.encode(text[at:until], add_special_tokens=False)
        ids.extend(encoding.ids)
        offsets.extend((at + a, at + b) for a, b in encoding.offsets)

    i = 0
    while i < len(text):
        token = max((t for t in SPECIAL if text.startswith(t, i)), key=len, default=None)
        if token is None or any(a < i + len(token) and i < b for a, b in literal):
            i += 1
            continue
        rest(i)
        ids.append(inner.token_to_id(token))
        offsets.append((i, i + len(token)))
        i += len(token)
        at = i
    rest(len(text))
    return ids, offsets


def mask_of(offsets, spans):
    """As apply_chat_template makes it of spans of characters, by `char_to_token`."""

    def token(at):
        return next((k for k, (a, b) in enumerate(offsets) if a <= at < b), None)

    mask = [0] * len(offsets)
    for start, end in spans:
        first, last = token(start), token(end - 1)
        if first is None:
            break
        for k in range(first, (last if last is not None else len(offsets) - 1) + 1):
            mask[k] = 1
    return mask


def runs(mask):
    """[first, one behind the last] of every run of ones."""
    edges = [k for k in range(len(mask) + 1) if mask[k : k + 1] != mask[k - 1 : k] and k > 0]
    edges = [0] * (mask[:1] == [1]) + edges
    return [list(pair) for pair in zip(edges[::2], edges[1::2])]


def contents(text, messages):
    """Spans of characters of what messages say."""
    spans, at = [], 0
    for message in messages:
        content = message["content"].strip()
        start = text.index(content, at)
        at = start + len(content)
        spans.append((start, at))
    return spans


def beyond_contents(text, spans, literal, ends):
    """The spans that begin outside messages, each up to the first end token behind its message."""
    opened = [start for start, _ in spans if not any(a < start < b for a, b in literal)]
    out = []
    for start in opened:
        said = next(b for a, b in literal if a >= start)
        out.append((start, min(text.index(e, said) + len(e) for e in ends if e in text[said:])))
    return out


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    inner = tokenizer()
    inner.save(str(OUT / "tokenizer.json"), pretty=False)
    cases = []
    for path in sorted(TEMPLATES.glob("*.jinja")):
        name = path.stem
        fast = PreTrainedTokenizerFast(
            tokenizer_object=inner, bos_token="<s>", eos_token="</s>", chat_template=path.read_text()
        )
        for conversation, given in CONVERSATIONS.items():
            messages, tools = given["messages"], given.get("tools")
            case = {"template": path.name, "conversation": conversation}
            cases.append(case)
            try:
                text = fast.apply_chat_template(messages, tools=tools, tokenize=False)
            except Exception as e:
                case["error"] = type(e).__name__
                continue
            whole = fast.apply_chat_template(
                messages,
                tools=tools,
                return_dict=True,
                return_assistant_tokens_mask="endgeneration" in path.read_text(),
            )
            ids = whole["input_ids"]
            encoding = fast(text, add_special_tokens=False, return_offsets_mapping=True)
            assert ids == encoding["input_ids"]
            if name in TURNS:
                spans = header_spans(text, name)
                mask = mask_of(encoding["offset_mapping"], spans)
            else:
                _, all_spans = chat_template_utils.render_jinja_template(
                    conversations=[messages],
                    tools=tools,
                    chat_template=path.read_text(),
                    return_assistant_tokens_mask=True,
                    bos_token="<s>",
                    eos_token="</s>",
                )
                spans = all_spans[0]
                mask = whole["assistant_masks"]
                assert mask == mask_of(encoding["offset_mapping"], spans)
            case["ids"] = ids
            if conversation == "controls":
                literal = contents(text, messages)
                if name in TURNS:
                    spans = beyond_contents(text, spans, literal, TURNS[name][1])
                    mask = mask_of(encoding["offset_mapping"], spans)
                guarded_ids, offsets = guarded(fast, text, literal)
                learned = runs(mask_of(offsets, spans))
                case["guarded"] = {"ids": guarded_ids, "learned": learned}
            case["learned"] = runs(mask)
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    head = json.dumps({"now": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())})[:-1]
    conversations = json.dumps(CONVERSATIONS, ensure_ascii=False)
    (OUT / "goldens.json").write_text(
        f'{head}, "conversations": {conversations}, "cases": [\n{lines}\n]}}\n'
    )
    failed = sum("error" in c for c in cases)
    print(len(cases), "cases,", failed, "of them refused by their template")


if __name__ == "__main__":
    sys.exit(main())
