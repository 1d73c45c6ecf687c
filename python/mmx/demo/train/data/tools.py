"""Tool use: declarations in many spellings, the request, the call in M3's syntax, the result and the answer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from mmx.demo.train.data.arithmetic import value
from mmx.demo.train.data.countries import CITIES, COUNTRIES, ZH_CITIES
from mmx.demo.train.data.dialogue import Call, Reply, Turn
from mmx.demo.train.data.phrasing import (
    disturbed,
    invented_place,
    unknown_question,
    weather_ask,
    zh_invented_place,
    zh_weather_ask,
)
from mmx.demo.train.data.words import COMMON, NAMES, NOUNS, invented_name

ALL_CITIES = [*CITIES, *(c.capital for c in COUNTRIES if "." not in c.capital)]
ALL_ZH_CITIES = [*ZH_CITIES, *(c.zh_capital for c in COUNTRIES)]
CALCULATORS = ["calculator", "calculate", "calc", "evaluate", "math"]
Ask = Callable[[random.Random], Turn]
Tool = tuple[Mapping[str, Any], Ask]

_SKIES = """sunny cloudy rainy snowy windy foggy clear stormy overcast|partly cloudy|light rain|heavy rain""".replace(
    " ", "|", 8
).split("|")
_ZH_SKIES = "晴 多云 小雨 大雨 阴 雪 雾 大风 雷阵雨 晴朗".split()


def _declare(
    rng: random.Random, names: str, about: str, properties: Mapping[str, Any], required: list[str]
) -> dict[str, Any]:
    name = rng.choice(names.split())
    parameters: dict[str, Any] = {"type": "object", "properties": dict(properties)}
    if rng.random() < 0.9:
        parameters["required"] = required
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.9:
        function["description"] = rng.choice(about.split("|"))
    return function | {"parameters": parameters}


def _typed(rng: random.Random, kind: str, about: str, **more: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": kind, **more}
    if rng.random() < 0.6:
        schema["description"] = rng.choice(about.split("|"))
    return schema


def _city(rng: random.Random, chinese: bool) -> str:
    if rng.random() < 0.35:
        return zh_invented_place(rng) if chinese else invented_place(rng)
    return rng.choice(ALL_ZH_CITIES if chinese else ALL_CITIES)


def _json(rng: random.Random, data: Any) -> str:
    separators = (",", ":") if rng.random() < 0.25 else None
    return json.dumps(data, ensure_ascii=False, separators=separators)


def _weather_result(rng: random.Random, city: str, chinese: bool) -> tuple[str, str]:
    """Return a tool result and the sentence that answers with it."""
    degrees: int | float = rng.randint(-15, 40)
    if rng.random() < 0.15:
        degrees += rng.randrange(1, 10) / 10
    sky = rng.choice(_ZH_SKIES if chinese else _SKIES)
    shape = rng.random()
    if shape < 0.15:
        result = f"{city}{sky}，{degrees}度" if chinese else rng.choice(
            [f"{sky}, {degrees} degrees", f"{sky.capitalize()}, {degrees} °C", f"{degrees}C {sky}"])  # fmt: skip
    else:
        warmth = rng.choice(["temperature", "temp", "temp_c", "temperature_c", "degrees"])
        look = rng.choice(["condition", "weather", "conditions", "sky", "description", "summary"])
        if shape < 0.3:
            data: dict[str, Any] = {warmth: rng.choice(["{}°C", "{} °C", "{}C"]).format(degrees), look: sky}
        else:
            data = {warmth: degrees, look: sky}
        if rng.random() < 0.4:
            data = {rng.choice(["city", "location"]): city} | data
        if rng.random() < 0.3:
            data["humidity"] = rng.choice([rng.randint(20, 99), f"{rng.randint(20, 99)}%"])
        if rng.random() < 0.2:
            data["unit"] = "celsius"
        items = list(data.items())
        if rng.random() < 0.3:
            rng.shuffle(items)
        result = _json(rng, dict(items))
    if chinese:
        return result, f"{city}现在{sky}，气温 {degrees} °C。"
    return result, f"It is {degrees} °C and {sky.lower()} in {city}."


def _calling(tool: Mapping[str, Any], reasoning: str, arguments: Mapping[str, Any]) -> Reply:
    """A reply that is one call."""
    return Reply("", reasoning, True, [Call(tool["name"], arguments)])


def weather_turn(
    rng: random.Random, tool: Mapping[str, Any], cities: list[str], ask: str, chinese: bool
) -> Turn:
    """Ask a declared weather tool for one or more cities."""
    name, properties = tool["name"], tool["parameters"]["properties"]
    key = next(iter(properties))
    joined = ("和" if chinese else " and ").join(cities)
    user = ask.format(joined)
    extra: dict[str, str] = {}
    for option, schema in properties.items():
        if option != key and rng.random() < 0.4:
            extra[option] = rng.choice(schema["enum"])
            user += f"（{extra[option]}）" if chinese else rng.choice([" Use {}.", " in {}", " In {}, please."]).format(
                extra[option])  # fmt: skip
    calls = [Call(name, {key: city} | extra) for city in cities]
    pairs = [_weather_result(rng, city, chinese) for city in cities]
    if chinese:
        reasoning, after = f"用户想知道{joined}的天气。我调用 {name}。", f"工具返回了{joined}的天气。"
    else:
        reasoning = f"The user wants the weather in {joined}. I call {name}."
        after = f"The tool returned the weather in {joined}."
    answer = ("" if chinese else " ").join(sentence for _, sentence in pairs)
    return Turn(user, Reply("", reasoning, thinks=True, calls=calls), [result for result, _ in pairs],
                Reply(answer, after, thinks=True))  # fmt: skip


def weather_tool(rng: random.Random) -> dict[str, Any]:
    """Declare a weather tool."""
    key = rng.choices(["city", "location", "place", "city_name", "town", "name", "q"], [8, 6, 2, 2, 1, 1, 1])[
        0
    ]
    properties = {
        key: _typed(rng, "string", "City name|The city|Name of the city|城市名称|The city and country|城市")
    }
    if rng.random() < 0.3:
        units = rng.choice([["celsius", "fahrenheit"], ["metric", "imperial"], ["C", "F"]])
        properties[rng.choice(["unit", "units"])] = {"type": "string", "enum": units}
    names = "get_weather get_weather get_weather get_current_weather weather query_weather weather_lookup fetch_weather"
    about = "Get the weather of a city|Get the current weather|Look up the weather|查询天气|Get weather information for a city|查询城市天气"
    return _declare(rng, names, about, properties, [key])


def weather(rng: random.Random) -> Tool:
    tool = weather_tool(rng)

    def ask(rng: random.Random) -> Turn:
        chinese = rng.random() < 0.35
        text = zh_weather_ask(rng) if chinese else weather_ask(rng)
        cities = [_city(rng, chinese)]
        if rng.random() < 0.12:
            cities.append(_city(rng, chinese))
        return weather_turn(rng, tool, list(dict.fromkeys(cities)), text, chinese)

    return tool, ask


def calculator(rng: random.Random) -> Tool:
    key = rng.choice(["expression", "expression", "expr", "input", "formula"])
    about = "Evaluate an arithmetic expression|A calculator|Calculate the value of an expression|计算器"
    tool = _declare(rng, " ".join(CALCULATORS), about,
                    {key: _typed(rng, "string", "The expression to evaluate|e.g. 2 + 3|表达式")}, [key])  # fmt: skip

    def ask(rng: random.Random) -> Turn:
        op = rng.choice("+-*")
        a, b = rng.randrange(10 ** rng.randint(2, 5)), rng.randrange(10 ** rng.randint(1, 4))
        text = rng.choice(["What is {}?", "Calculate {}.", "Use the calculator: {}", "{}", "Compute {}", "计算 {}",
                           "How much is {}?", "Please calculate {} with the tool.", "{} 等于多少？"])  # fmt: skip
        expression, result = f"{a} {op} {b}", value(a, op, b)
        if rng.random() < 0.3:
            c = rng.randrange(2, 100)
            expression, result = (f"({expression}) * {c}", result * c) if rng.random() < 0.5 else (
                f"{expression} + {c}", result + c)  # fmt: skip
        if rng.random() < 0.2:
            expression = expression.replace(" ", "")
        shown = rng.choice([str(result), json.dumps({"result": result}), json.dumps({"value": result})])
        return Turn(
            disturbed(rng, text.format(expression)),
            _calling(tool, f"I let {tool['name']} compute {expression}.", {key: expression}),
            [shown],
            Reply(f"{expression} = {result}.", f"The tool returned {result}.", thinks=True),
        )

    return tool, ask


def _topic(rng: random.Random) -> str:
    words = [rng.choice(rng.choice([COMMON, NOUNS])) for _ in range(rng.randint(1, 4))]
    return " ".join(words) if rng.random() < 0.8 else f"{invented_name(rng)} {words[0]}"


def search(rng: random.Random) -> Tool:
    key = rng.choice(["query", "query", "q", "keywords", "search_query"])
    properties = {key: _typed(rng, "string", "The search query|What to search for|搜索关键词")}
    limit = rng.choice(["top_k", "limit", "num_results", "max_results"])
    if limited := rng.random() < 0.3:
        properties[limit] = _typed(rng, "integer", "Number of results|How many results")
    about = "Search the web|Search the internet for a query|Web search|搜索网页"
    tool = _declare(
        rng, "search web_search search_web google_search internet_search", about, properties, [key]
    )

    def ask(rng: random.Random) -> Turn:
        topic, count = _topic(rng), rng.randint(1, 20)
        arguments: dict[str, Any] = {key: topic}
        if limited and rng.random() < 0.5:
            arguments[limit] = count
            user = rng.choice(["Search for {}. Give me {} results.", "Find {1} results about {0}."]).format(
                topic, count
            )
        else:
            user = rng.choice(["Search for {}.", "Search the web for {}.", "Look up {} on the web.", "搜索 {}",
                               "Find information about {}.", "search {}", "Please search: {}"]).format(topic)  # fmt: skip
        if rng.random() < 0.25:
            user = unknown_question(rng)
            topic = user.rstrip("?.")
            arguments = {key: topic}
        found = f"{_topic(rng).capitalize()} is a {rng.choice(COMMON)} in {rng.choice(CITIES)}"
        result = rng.choice([found, _json(rng, {"result": found}), _json(rng, {"results": [found]})])
        return Turn(
            user,
            _calling(tool, f"The user wants a search for {topic}. I call {tool['name']}.", arguments),
            [result],
            Reply(f"I found this: {found}.", "The tool returned a result.", thinks=True),
        )

    return tool, ask


def clock(rng: random.Random) -> Tool:
    key = rng.choice(["city", "location", "timezone"])
    tool = _declare(rng, "get_time get_current_time time clock", "Get the current time in a city|Current time|查询时间",
                    {key: _typed(rng, "string", "City name|The city")}, [key])  # fmt: skip

    def ask(rng: random.Random) -> Turn:
        city = _city(rng, False)
        user = rng.choice(["What time is it in {}?", "Tell me the time in {}.", "Current time in {}?"])
        user = disturbed(rng, user).format(city)
        now = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
        return Turn(
            user,
            _calling(tool, f"The user wants the time in {city}. I call {tool['name']}.", {key: city}),
            [rng.choice([now, _json(rng, {"time": now}), _json(rng, {key: city, "time": now})])],
            Reply(f"It is {now} in {city}.", f"The tool returned {now}.", thinks=True),
        )

    return tool, ask


def timer(rng: random.Random) -> Tool:
    key = rng.choice(["minutes", "duration", "duration_minutes"])
    tool = _declare(rng, "set_timer start_timer timer", "Set a timer|Start a timer for some minutes|设置计时器",
                    {key: _typed(rng, "integer", "Minutes|Length in minutes")}, [key])  # fmt: skip

    def ask(rng: random.Random) -> Turn:
        minutes = rng.randint(1, 120)
        user = rng.choice(
            ["Set a timer for {} minutes.", "Start a {} minute timer.", "Remind me in {} minutes."]
        )
        return Turn(
            disturbed(rng, user.format(minutes)),
            _calling(tool, f"The user wants a timer of {minutes} minutes.", {key: minutes}),
            [rng.choice(["ok", '{"status": "ok"}', '{"success": true}', "Timer set."])],
            Reply(f"The timer is set for {minutes} minutes.", "The timer was set.", thinks=True),
        )

    return tool, ask


def currency(rng: random.Random) -> Tool:
    keys = rng.choice(
        [("amount", "from", "to"), ("amount", "from_currency", "to_currency"), ("value", "source", "target")]
    )
    properties = {keys[0]: _typed(rng, "number", "The amount"), keys[1]: _typed(rng, "string", "Currency code"),
                  keys[2]: _typed(rng, "string", "Currency code")}  # fmt: skip
    tool = _declare(rng, "convert_currency exchange currency_converter", "Convert money between currencies|汇率换算",
                    properties, list(keys))  # fmt: skip

    def ask(rng: random.Random) -> Turn:
        source, target = rng.sample("USD EUR CNY JPY GBP CHF INR KRW AUD CAD".split(), 2)
        amount, got = rng.randint(1, 999), f"{rng.randint(1, 9999)}.{rng.randrange(1, 10)}"
        user = rng.choice(["Convert {} {} to {}.", "How much is {} {} in {}?", "Change {} {} into {}."])
        arguments = dict(zip(keys, (amount, source, target), strict=True))
        return Turn(
            user.format(amount, source, target),
            _calling(tool, f"I convert {amount} {source} to {target}.", arguments),
            [rng.choice([got, f'{{"result": {got}}}', f'{{"amount": {got}, "currency": "{target}"}}'])],
            Reply(f"{amount} {source} is {got} {target}.", f"The tool returned {got}.", thinks=True),
        )

    return tool, ask


def message(rng: random.Random) -> Tool:
    to, body = rng.choice([("to", "text"), ("recipient", "message"), ("to", "body"), ("name", "content")])
    properties = {to: _typed(rng, "string", "Who receives it"), body: _typed(rng, "string", "The text")}
    tool = _declare(
        rng,
        "send_message send_email send_sms",
        "Send a message to somebody|Send text",
        properties,
        [to, body],
    )

    def ask(rng: random.Random) -> Turn:
        name, text = rng.choice(NAMES), _topic(rng)
        user = rng.choice(["Send a message to {}: {}", "Write to {}: {}", "Tell {} this: {}"]).format(
            name, text
        )
        return Turn(
            user,
            _calling(tool, f"The user wants to send a message to {name}.", {to: name, body: text}),
            [rng.choice(["ok", '{"status": "sent"}', '{"success": true}', "sent"])],
            Reply(f"I sent the message to {name}.", "The message was sent.", thinks=True),
        )

    return tool, ask


def meeting(rng: random.Random) -> Tool:
    title, people = rng.choice([("title", "attendees"), ("name", "participants"), ("subject", "people")])
    properties = {title: _typed(rng, "string", "Title"),
                  people: {"type": "array", "items": {"type": "string"}}}  # fmt: skip
    tool = _declare(rng, "create_meeting create_event schedule_meeting", "Create a meeting|Create a calendar event",
                    properties, [title, people])  # fmt: skip

    def ask(rng: random.Random) -> Turn:
        names, what = rng.sample(NAMES, rng.randint(1, 3)), rng.choice(NOUNS).capitalize()
        user = f"Create a meeting called {what} with {' and '.join(names)}."
        return Turn(
            user,
            _calling(tool, f"The user wants a meeting called {what}.", {title: what, people: names}),
            [rng.choice(["ok", '{"status": "created"}', '{"success": true}'])],
            Reply(f"The meeting {what} is created.", "The meeting was created.", thinks=True),
        )

    return tool, ask


def missing_tool(rng: random.Random) -> Turn:
    """Ask for the weather where no tool can tell it."""
    chinese = rng.random() < 0.3
    ask = (zh_weather_ask(rng) if chinese else weather_ask(rng)).format(_city(rng, chinese))
    if chinese:
        return Turn(ask, Reply("没有天气工具，我查不到天气。", "用户问天气，但没有天气工具。"))
    return Turn(
        ask, Reply("I cannot look up the weather without a weather tool.", "There is no weather tool here.")
    )


_MAKERS = [weather, calculator, search, clock, timer, currency, message, meeting]
_WEIGHTS = [8, 4, 4, 1, 1, 1, 1, 1]


def toolbox(rng: random.Random, most: int) -> tuple[list[Mapping[str, Any]], list[Ask]]:
    """Declare one to ``most`` different tools in random order; return the declarations and their askers."""
    makers: list[Callable[[random.Random], Tool]] = []
    for maker in rng.choices(_MAKERS, _WEIGHTS, k=rng.randint(1, most)):
        if maker not in makers:
            makers.append(maker)
    built = [maker(rng) for maker in makers]
    return [declaration for declaration, _ in built], [ask for _, ask in built]
