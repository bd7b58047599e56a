"""Random conversations in OpenAI's form, for the encoders of DeepSeek's message formats."""

import json

WORDS = [
    "Hello",
    "naïve",
    "天气",
    "🦊",
    "<b>",
    "{x}",
    "%s",
    '"quoted"',
    "a\\b",
    "\n",
    "two\n\nlines",
]
WORDS += ["</think>", "<think>", "<｜DSML｜", "tab\t", "", " ", "0", "null", "$NAME", "{calls}"]


def random_text(rng, fewest=0):
    """Returns a text of a few words, some of which are hard to quote."""
    return " ".join(rng.choices(WORDS, k=rng.randint(fewest, 4)))


def random_value(rng, depth=0):
    """Returns a JSON value."""
    kinds = [True, False, None, rng.randint(-9, 10**12), rng.uniform(-1, 1), random_text(rng)]
    if depth < 2:
        kinds.append([random_value(rng, depth + 1) for _ in range(rng.randint(0, 2))])
        kinds.append({random_text(rng): random_value(rng, depth + 1) for _ in range(2)})
    return rng.choice(kinds)


def random_tools(rng):
    """Returns OpenAI's `tools`, or `None`."""
    return [
        {
            "type": "function",
            "function": {
                "name": f"tool_{number}",
                "description": random_text(rng),
                "parameters": {"type": "object", "properties": {"x": {"title": random_text(rng)}}},
            },
        }
        for number in range(rng.randint(0, 3))
    ] or rng.choice([None, []])


def random_content(rng):
    """Returns a text, or a list of text parts."""
    if rng.random() < 0.7:
        return random_text(rng)
    return [{"type": "text", "text": random_text(rng)} for _ in range(rng.randint(1, 3))]


def random_call(rng, number):
    """Returns one of the tool calls of an answer."""
    arguments = {f"p{n}": random_value(rng) for n in range(rng.randint(0, 3))}
    written = json.dumps(arguments, ensure_ascii=rng.random() < 0.5)
    function = {
        "name": f"tool_{rng.randint(0, 2)}",
        "arguments": rng.choice([arguments, written]),
    }
    return {"id": f"call_{number}", "type": "function", "function": function}


def random_messages(rng, style):
    """Returns messages of each role of a style; results follow their answer in any order."""
    roles = ["system", "user", "user", "developer", "assistant", "assistant", "assistant"]
    roles += ["latest_reminder"] * (style != "v3.2")
    messages = []
    for role in rng.choices(roles, k=rng.randint(1, 7)):
        message = {"role": role, "content": random_content(rng), "name": "ignored"}
        messages.append(message)
        if role == "developer":
            message["content"] = random_text(rng, fewest=1) + "."
        if role != "assistant":
            continue
        if style == "v3.2" or rng.random() < 0.7:  # V3.2 may ask for it.
            message[rng.choice(["reasoning", "reasoning_content"])] = random_text(rng) + "."
        calls = [random_call(rng, number) for number in range(rng.choice([0, 0, 1, 2, 3]))]
        if calls:
            message["tool_calls"] = calls
            if rng.random() < 0.3:
                message["content"] = None
            results = [
                {"role": "tool", "tool_call_id": call["id"], "content": random_content(rng)}
                for call in calls
            ]
            messages += rng.sample(results, len(results)) if rng.random() < 0.8 else []
    return messages


def random_chat(rng, style):
    """Returns random arguments of `encode_chat`."""
    schema = {"type": "object", "properties": {"y": random_value(rng)}}
    formats = [None, None, {"type": "text"}, {"type": "json_object"}]
    formats += [{"type": "json_schema", "json_schema": {"name": "y", "schema": schema}}]
    efforts = {"v3.2": [None], "v4": [None, "low", "high", "max"]}
    efforts["v4.1"] = [None, "low", "high", "xhigh", "max", 1, 33, 100]
    return {
        "messages": random_messages(rng, style),
        "style": style,
        "thinking": rng.random() < 0.6,
        "tools": random_tools(rng),
        "response_format": rng.choice(formats),
        "reasoning_effort": rng.choice(efforts[style]),
    }
