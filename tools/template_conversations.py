"""Conversations for the popular chat templates, with tools, reasoning and documents."""


def say(role, content, **more):
    return {"role": role, "content": content} | more


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather_at",
        "description": "Tells the weather of a town.",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "the town's name, as in \"Köln\""},
                "days": {"type": "integer", "enum": [1, 3]},
                "units": {"type": ["string", "integer"]},
            },
            "required": ["town"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time.",
        "parameters": {"type": "object", "properties": {}},
    },
}


def call(name, arguments, id="call00001"):
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


ASKED = say("user", "Will it rain in Köln?")
CALLED = say("assistant", "", tool_calls=[call("weather_at", {"town": "Köln", "days": 3})])
TOLD = say("tool", '{"rain": [0.5, 1e-3]}', name="weather_at", tool_call_id="call00001")

CONVERSATIONS = {
    "question": {"messages": [say("user", "Name a river.")], "add_generation_prompt": True},
    "answered": {"messages": [say("user", "Name a river."), say("assistant", "The Wupper.")]},
    "several": {
        "messages": [
            say("system", "You answer in one word.\n"),
            say("user", "  2 + 2? "),
            say("assistant", "Four\n"),
            say("user", "Und auf Deutsch? 🙂"),
            say("assistant", "Vier"),
        ],
    },
    "open": {
        "messages": [
            say("system", "Be kind."),
            say("user", "Hi"),
            say("assistant", "Hello!"),
            say("user", "How are <you> & \"yours\"?"),
        ],
        "add_generation_prompt": True,
    },
    "thought": {
        "messages": [
            say("user", "Is 91 prime?"),
            say("assistant", "<think>\n7 * 13\n</think>\n\nNo."),
            say("user", "And 97?"),
            say("assistant", "<think>\nno divisor up to 9\n</think>\n\nYes."),
        ],
    },
    "reasoning": {
        "messages": [
            say("user", "Is 91 prime?"),
            say("assistant", "No.", reasoning_content="7 * 13"),
        ],
    },
    "no_thinking": {
        "messages": [say("user", "Quick: 3 * 3?")],
        "add_generation_prompt": True,
        "enable_thinking": False,
    },
    "tools": {
        "messages": [say("system", "Use tools."), ASKED],
        "tools": [WEATHER, CLOCK],
        "add_generation_prompt": True,
    },
    "called": {
        "messages": [ASKED, CALLED, TOLD, say("assistant", "A little.")],
        "tools": [WEATHER],
    },
    "two_calls": {
        "messages": [
            ASKED,
            say(
                "assistant",
                "Let me look.",
                tool_calls=[
                    call("weather_at", {"town": "Köln"}, "abcdefghi"),
                    call("clock", {}, "jklmnopqr"),
                ],
            ),
            say("tool", "dry", tool_call_id="abcdefghi"),
            say("tool", "12:00", tool_call_id="jklmnopqr"),
        ],
        "tools": [WEATHER, CLOCK],
        "add_generation_prompt": True,
    },
    "no_tools": {"messages": [say("user", "Hi")], "tools": []},
    "documents": {
        "messages": [say("user", "What does the paper say?")],
        "documents": [
            {"title": "Paper", "text": "Rivers flow."},
            {"title": "Note", "text": "They end\nin the sea."},
        ],
        "add_generation_prompt": True,
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ],
    },
    "not_alternating": {"messages": [say("user", "a"), say("user", "b")]},
    "empty_answer": {"messages": [say("user", "Say nothing."), say("assistant", "")]},
}
