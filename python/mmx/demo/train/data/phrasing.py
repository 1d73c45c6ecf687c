"""Composed phrasings: the same request opened, worded and closed in many ways, some kept for evaluation."""

from __future__ import annotations

import random

from mmx.demo.train.data.countries import COUNTRIES, ZH_CITIES
from mmx.demo.train.data.words import ADJECTIVES, NOUNS, invented_name

WEATHER_HELD_OUT = ("Could you check the weather in {}?", "Please tell me the weather in {}.",
                    "What is the weather like in {} now?", "I would like to know how the weather is in {}.")  # fmt: skip
ZH_WEATHER_HELD_OUT = ("请帮我查一下{}的天气。", "请问{}今天的天气怎么样？", "我想查询{}现在的天气。")

_HELLOS = ["", "", "", "", "", "Hi, ", "Hello, ", "Hey, ", "Hi! ", "Hello! ", "ok, ", "Now ",
           "Good morning, ", "So, "]  # fmt: skip
_COMMANDS = ["", "", "", "Please ", "Could you ", "Can you ", "Can you please ", "Could you please ", "Would you ",
             "I want you to ", "Use the tool to ", "I'd like you to ", "You should ", "Kindly "]  # fmt: skip
_VERBS = ["check", "look up", "get", "query", "find", "tell me", "show me", "fetch", "find out", "give me",
          "search for"]  # fmt: skip
_THINGS = ["the weather in {}", "the weather for {}", "the current weather in {}", "the weather of {}", "{}'s weather",
           "the temperature in {}", "the weather forecast for {}", "the weather report for {}", "weather in {}",
           "what the weather is like in {}", "how the weather is in {}", "the weather conditions in {}"]  # fmt: skip
_LEADS = ["", "", "", "Do you know ", "I want to know ", "I'd like to know ", "I would like to know ", "Tell me ",
          "I wonder ", "Let me know "]  # fmt: skip
_QUESTIONS = ["what is the weather in {}", "what's the weather like in {}", "how is the weather in {}", "how warm is {}",
              "what is the temperature in {}", "is it raining in {}", "will it rain in {}", "is it cold in {}",
              "what is the weather like in {}", "how cold is it in {}", "what's the weather in {}", "is {} sunny",
              "how's the weather in {}", "do I need an umbrella in {}", "what weather does {} have"]  # fmt: skip
_TIMES = ["", "", "", "", "", " today", " now", " right now", " tomorrow", " tonight", " this morning", " this week",
          " at the moment", " for me", " please", ", please", " currently", " this evening"]  # fmt: skip
_ENDS = ["?", ".", "", "!", "?", "."]
_TRIPS = ["I am travelling to {}.", "I live in {}.", "I will fly to {} soon.", "My friend is in {}.",
          "I am in {}."]  # fmt: skip
_AFTER_TRIP = ["What is the weather like there?", "How is the weather?", "Please check the weather.",
               "Is it cold there?"]  # fmt: skip

_ZH_HELLOS = ["", "", "", "你好，", "您好，", "嗨，", "那么"]
_ZH_LEADS = ["", "", "请", "请问", "帮我", "请帮我", "麻烦", "麻烦你", "我想", "你能", "能不能", "请你",
             "可以", "我要", "劳驾"]  # fmt: skip
_ZH_VERBS = ["查询", "查一下", "查", "看看", "查查", "告诉我", "看一下", "知道", "说说", "查询一下", "了解",
             "搜一下"]  # fmt: skip
_ZH_TIMES = ["", "", "", "今天", "明天", "现在", "今晚", "这周", "目前", "今天早上", "此刻", "当前"]
_ZH_THINGS = ["的天气", "天气", "的天气情况", "的气温", "天气预报", "的天气预报", "的温度"]
_ZH_ASKS = ["天气怎么样", "的天气怎么样", "天气如何", "的天气如何", "热不热", "冷不冷", "会下雨吗",
            "多少度", "的天气好吗", "气温多少"]  # fmt: skip
_ZH_ENDS = ["。", "？", "", "吧。", "！"]

_PREFIXES = ["Please answer: ", "Hi! ", "Hello, ", "Question: ", "I have a question. ", "Can you help? ", "ok, ", "Now: ",
             "Hey, ", "Next: ", "One more: ", "Good. ", "Thanks. ", "So, ", "Quick question: ", "Hi mmx, ", "Well, ",
             "Another question: ", "Great. ", "Tell me, ", "Dear mmx, ", "Hello! ", "Please help me. "]  # fmt: skip
_SUFFIXES = [" Please.", " Thanks!", "\n", " Thank you.", " Answer briefly.", " please", " I need to know.",
             "!", " :)"]  # fmt: skip
_UNKNOWN = ["Who is the president of {}?", "What is the population of {}?", "How tall is {}?", "Why is {} so famous?",
            "When was {} founded?", "Who invented {}?", "What happened in {} last year?", "How do I get to {}?",
            "What is the best food in {}?", "Who lives in {}?", "How old is {}?", "What does {} mean?", "Do you like {}?",
            "Write a poem about {}.", "Tell me a story about {}.", "What do you think about {}?", "Explain {}.",
            "Who won the {} cup?", "What is the price of {}?", "What is the latest news about {}?", "Who is {}?",
            "What is {}?", "Tell me about {}.", "Where can I buy {}?", "How does {} work?"]  # fmt: skip

_WHY = ["Why is the {0} {1}?", "Why are {0}s {1}?", "Why do {0}s sleep?", "How do I repair a {0}?", "How do {0}s work?",
        "How can I become {1}?", "When will the {0} open?", "Should I buy a {1} {0}?", "What would {2} do with a {0}?",
        "Where did {2} put the {0}?", "How many {0}s does {2} have?", "Which {0} is the best?", "Is {2} in the {0}?",
        "Is the {0} {1}?", "Can {0}s fly?", "Does {2} like the {1} {0}?", "Who is {2} {2}?"]  # fmt: skip
_UNKNOWN_OF_COUNTRY = ["Who is the president of {}?", "What is the population of {}?", "What is the history of {}?",
                       "Who is the king of {}?", "When was {} founded?", "What is the flag of {}?", "How big is {}?",
                       "What should I see in {}?", "Is {} rich?", "Who won the election in {}?",
                       "What is the best food in {}?", "How many people live in {}?"]  # fmt: skip


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] if text else text


def weather_ask(rng: random.Random) -> str:
    """Compose an English request for the weather; ``{}`` stands for the place, used once."""
    while True:
        kind = rng.random()
        time, end = rng.choice(_TIMES), rng.choice(_ENDS)
        if kind < 0.45:
            core = f"{rng.choice(_COMMANDS)}{rng.choice(_VERBS)} {rng.choice(_THINGS)}"
        elif kind < 0.88:
            core = rng.choice(_LEADS) + rng.choice(_QUESTIONS)
        elif kind < 0.94:
            core = rng.choice(_THINGS).replace("the ", "")
        else:
            core, time, end = f"{rng.choice(_TRIPS)} {rng.choice(_AFTER_TRIP)}", "", ""
        hello = rng.choice(_HELLOS)
        text = hello + (core if hello and not hello.endswith("! ") else _capital(core)) + time + end
        if rng.random() < 0.15:
            text = text.lower()
        if text not in WEATHER_HELD_OUT:
            return text


def zh_weather_ask(rng: random.Random) -> str:
    """Compose a Chinese request for the weather; ``{}`` stands for the place."""
    while True:
        time, late = rng.choice(_ZH_TIMES), rng.random() < 0.5
        place = "{}" + time if late else time + "{}"
        if rng.random() < 0.55:
            text = rng.choice(_ZH_HELLOS) + rng.choice(_ZH_LEADS) + rng.choice(_ZH_VERBS) + place
            text += rng.choice(_ZH_THINGS)
        else:
            text = (
                rng.choice(_ZH_HELLOS) + rng.choice(["", "", "请问", "我想知道", "你知道", "告诉我"]) + place
            )
            text += rng.choice(_ZH_ASKS)
        text += rng.choice(_ZH_ENDS)
        if text not in ZH_WEATHER_HELD_OUT:
            return text


def invented_place(rng: random.Random) -> str:
    """Return a place that is in no list, of one or two words."""
    name = invented_name(rng)
    if rng.random() < 0.25:
        name = f"{rng.choice(['New', 'Port', 'San', 'Saint', 'North', 'East', 'Los', 'El', 'Fort', 'Old'])} {name}"
    return name


def zh_invented_place(rng: random.Random) -> str:
    """Return two to four characters drawn from the listed Chinese city names."""
    characters = "".join(ZH_CITIES)
    return "".join(rng.choice(characters) for _ in range(rng.randint(2, 4)))


def unknown_question(rng: random.Random) -> str:
    """Ask something the model cannot know."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(_WHY).format(rng.choice(NOUNS), rng.choice(ADJECTIVES), invented_name(rng))
    if kind < 0.5:
        return rng.choice(_UNKNOWN_OF_COUNTRY).format(rng.choice(COUNTRIES).name)
    about = invented_name(rng) if kind < 0.7 else f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    return rng.choice(_UNKNOWN).format(about)


def disturbed(rng: random.Random, user: str) -> str:
    """Write some questions less neatly, as people do: openings, closings, lost punctuation, lower case."""
    kind = rng.random()
    if kind < 0.05:
        return user.rstrip("?.。？")
    if kind < 0.12:
        return user.lower()
    if not user.isascii():
        return f"你好，{user}" if kind < 0.15 else user
    if kind < 0.24:
        prefix = rng.choice(_PREFIXES)
        return prefix + (user[0].lower() + user[1:] if rng.random() < 0.5 else user)
    return user + rng.choice(_SUFFIXES) if kind < 0.3 else user
