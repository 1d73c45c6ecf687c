"""A few hundred facts as question and answer, and capitals of countries, with several phrasings each."""

from __future__ import annotations

import random

from mmx.demo.train.data.countries import COUNTRIES, Country
from mmx.demo.train.data.dialogue import Reply, Turn
from mmx.demo.train.data.words import invented_name

CAPITAL_ASKS = [
    "What is the capital of {}?", "What's the capital of {}?", "what is the capital of {}", "Capital of {}?",
    "capital of {}", "Tell me the capital of {}.", "Name the capital of {}.", "Which city is the capital of {}?",
    "Do you know the capital of {}?", "What city is the capital of {}?", "The capital of {} is", "{} capital",
    "What is the capital city of {}?", "I want to know the capital of {}.", "{}: what is its capital?",
    "Please tell me the capital of {}.", "can you tell me the capital of {}?", "Give me the capital of {}.",
    "Which city is {}'s capital?", "what's {}'s capital", "Hi, what is the capital of {}?", "and of {}?",
]  # fmt: skip
CAPITAL_ASKS_HELD_OUT = [
    "Could you name the capital of {}?", "What is {}'s capital?", "Tell me, which city is the capital of {}?",
    "Please name the capital city of {}.",
]  # fmt: skip
ZH_CAPITAL_ASKS = [
    "{}的首都是哪里？", "{}的首都是什么？", "{}的首都是哪个城市？", "{}首都", "请问{}的首都是哪里？", "告诉我{}的首都。",
    "你知道{}的首都吗？", "{}的首都在哪里？", "{}的首都是？",
]  # fmt: skip
ZH_CAPITAL_ASKS_HELD_OUT = ["请问{}的首都是什么？", "请告诉我{}的首都是哪里。"]

_ELEMENTS = """hydrogen:H helium:He lithium:Li beryllium:Be boron:B carbon:C nitrogen:N oxygen:O fluorine:F neon:Ne
sodium:Na magnesium:Mg aluminium:Al silicon:Si phosphorus:P sulfur:S chlorine:Cl argon:Ar potassium:K calcium:Ca
scandium:Sc titanium:Ti vanadium:V chromium:Cr manganese:Mn iron:Fe cobalt:Co nickel:Ni copper:Cu zinc:Zn gallium:Ga
germanium:Ge arsenic:As selenium:Se bromine:Br krypton:Kr"""
_LATER = "silver:Ag:47 tin:Sn:50 iodine:I:53 xenon:Xe:54 tungsten:W:74 platinum:Pt:78 gold:Au:79 mercury:Hg:80 lead:Pb:82"
_OPPOSITES = """hot:cold big:small tall:short fast:slow light:dark happy:sad young:old rich:poor hard:soft wet:dry
full:empty open:closed early:late good:bad high:low long:short strong:weak clean:dirty loud:quiet near:far left:right
up:down in:out new:old day:night black:white true:false first:last always:never love:hate win:lose push:pull buy:sell
start:stop easy:difficult thick:thin wide:narrow deep:shallow sharp:blunt safe:dangerous brave:cowardly"""
_YOUNG = """dog:puppy cat:kitten cow:calf horse:foal sheep:lamb pig:piglet hen:chick duck:duckling goose:gosling
lion:cub bear:cub goat:kid deer:fawn frog:tadpole swan:cygnet kangaroo:joey owl:owlet eagle:eaglet whale:calf"""
_SOUNDS = """dog:barks cat:meows cow:moos horse:neighs sheep:bleats pig:oinks duck:quacks lion:roars wolf:howls
bee:buzzes snake:hisses owl:hoots frog:croaks mouse:squeaks donkey:brays rooster:crows"""
_LANGUAGES = """France:French Germany:German Spain:Spanish Italy:Italian Portugal:Portuguese Brazil:Portuguese
Mexico:Spanish China:Chinese Japan:Japanese Russia:Russian Greece:Greek Poland:Polish Sweden:Swedish Norway:Norwegian
Denmark:Danish Finland:Finnish Hungary:Hungarian Turkey:Turkish Iran:Persian Thailand:Thai Vietnam:Vietnamese
Egypt:Arabic Iceland:Icelandic Romania:Romanian Ukraine:Ukrainian Argentina:Spanish Austria:German"""
_MONEY = """Japan:yen China:yuan Germany:euro France:euro Italy:euro India:rupee Russia:ruble Brazil:real Mexico:peso
Sweden:krona Norway:krone Poland:zloty Turkey:lira Thailand:baht Vietnam:dong Israel:shekel Switzerland:franc
Denmark:krone Canada:dollar Australia:dollar Egypt:pound Hungary:forint"""
_CHINESE = """water:水 fire:火 mountain:山 moon:月亮 sun:太阳 tree:树 cat:猫 dog:狗 horse:马 bird:鸟 fish:鱼 book:书 tea:茶
rice:米饭 bread:面包 milk:牛奶 apple:苹果 flower:花 river:河 sea:海 sky:天空 rain:雨 snow:雪 wind:风 person:人 friend:朋友
teacher:老师 student:学生 doctor:医生 house:房子 door:门 car:汽车 train:火车 city:城市 red:红色 green:绿色 blue:蓝色
white:白色 black:黑色 one:一 two:二 three:三 ten:十 hello:你好 goodbye:再见 love:爱"""
_MONTHS = """January:31 February:28 March:31 April:30 May:31 June:30 July:31 August:31 September:30 October:31
November:30 December:31""".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_LOOSE = """
Why is the sky blue?|The sky is blue because air scatters blue light the most.
Why is grass green?|Grass is green because of chlorophyll.
Why is the sea salty?|The sea is salty because rivers carry minerals into it.
Why do leaves fall?|Trees drop leaves to save water in winter.
Why do we sleep?|We sleep so that body and brain can recover.
What is the biggest country in the world?|Russia is the largest country by area.
What is the biggest ocean in the world?|The Pacific is the largest ocean.
What is the biggest animal in the world?|The blue whale is the largest animal.
What is the biggest planet in the solar system?|Jupiter is the largest planet.
What is the tallest mountain in the world?|Mount Everest is the highest mountain.
What is the longest river in the world?|The Nile is often called the longest river.
What is the smallest country in the world?|Vatican City is the smallest country.
Who was Albert Einstein?|Albert Einstein was the physicist who developed the theory of relativity.
Who was Isaac Newton?|Isaac Newton was the physicist who described gravity and motion.
Who was William Shakespeare?|William Shakespeare was the author of Hamlet and Romeo and Juliet.
Who was Leonardo da Vinci?|Leonardo da Vinci was the painter of the Mona Lisa.
Who was Marie Curie?|Marie Curie was the scientist who discovered radium.
What is a router?|In an M3 model the router picks the experts for each token.
What is an expert?|In an M3 model an expert is a small network that some tokens use.
What is sparse attention?|Sparse attention reads only the blocks of the text that an index selects.
What is a token?|A token is a short piece of text with a number.
How many days are in a week?|A week has 7 days.
How many months are in a year?|A year has 12 months.
How many days are in a year?|A year has 365 days.
How many hours are in a day?|A day has 24 hours.
How many minutes are in an hour?|An hour has 60 minutes.
How many seconds are in a minute?|A minute has 60 seconds.
How many letters are in the English alphabet?|The English alphabet has 26 letters.
How many legs does a spider have?|A spider has 8 legs.
How many legs does an insect have?|An insect has 6 legs.
How many legs does a dog have?|A dog has 4 legs.
How many continents are there?|There are 7 continents.
How many oceans are there?|There are 5 oceans.
How many planets are in the solar system?|The solar system has 8 planets.
How many sides does a triangle have?|A triangle has 3 sides.
How many sides does a square have?|A square has 4 sides.
How many sides does a hexagon have?|A hexagon has 6 sides.
How many strings does a violin have?|A violin has 4 strings.
How many players are in a football team?|A football team has 11 players.
How many bones does an adult human have?|An adult human has 206 bones.
How many meters are in a kilometer?|A kilometer has 1000 meters.
How many grams are in a kilogram?|A kilogram has 1000 grams.
How many centimeters are in a meter?|A meter has 100 centimeters.
How many bits are in a byte?|A byte has 8 bits.
What color is the sky?|The sky is blue.
What color is grass?|Grass is green.
What color is snow?|Snow is white.
What color is blood?|Blood is red.
What color is a banana?|A ripe banana is yellow.
What color do you get from blue and yellow?|Blue and yellow give green.
What color do you get from red and yellow?|Red and yellow give orange.
What color do you get from red and blue?|Red and blue give purple.
What is the largest planet?|Jupiter is the largest planet.
What is the smallest planet?|Mercury is the smallest planet.
Which planet is the hottest?|Venus is the hottest planet.
Which planet is called the red planet?|Mars is called the red planet.
Which planet has rings?|Saturn is the planet known for its rings.
What is the largest ocean?|The Pacific is the largest ocean.
What is the longest river?|The Nile is often called the longest river.
What is the highest mountain?|Mount Everest is the highest mountain.
What is the largest animal?|The blue whale is the largest animal.
What is the fastest land animal?|The cheetah is the fastest land animal.
What is the tallest animal?|The giraffe is the tallest animal.
What is the largest desert?|The Antarctic desert is the largest desert.
What is the largest country?|Russia is the largest country by area.
What is the smallest country?|Vatican City is the smallest country.
What do bees make?|Bees make honey.
What do cows drink?|Cows drink water.
What is ice made of?|Ice is made of frozen water.
What is the chemical formula of water?|The chemical formula of water is H2O.
What is the chemical formula of salt?|The chemical formula of salt is NaCl.
What is the chemical formula of carbon dioxide?|The chemical formula of carbon dioxide is CO2.
At what temperature does water boil?|Water boils at 100 degrees Celsius.
At what temperature does water freeze?|Water freezes at 0 degrees Celsius.
What is the speed of light?|The speed of light is about 300000 kilometers per second.
What is pi?|Pi is about 3.14159.
What is the square root of 144?|The square root of 144 is 12.
What is the square root of 81?|The square root of 81 is 9.
Who painted the Mona Lisa?|Leonardo da Vinci painted the Mona Lisa.
Who wrote Romeo and Juliet?|William Shakespeare wrote Romeo and Juliet.
Who wrote Hamlet?|William Shakespeare wrote Hamlet.
Who wrote Don Quixote?|Miguel de Cervantes wrote Don Quixote.
Who wrote Faust?|Johann Wolfgang von Goethe wrote Faust.
Who wrote War and Peace?|Leo Tolstoy wrote War and Peace.
Who discovered gravity?|Isaac Newton described gravity.
Who developed the theory of relativity?|Albert Einstein developed the theory of relativity.
Who discovered penicillin?|Alexander Fleming discovered penicillin.
Who discovered radium?|Marie Curie discovered radium.
Who invented the telephone?|Alexander Graham Bell is credited with the telephone.
Who invented the printing press?|Johannes Gutenberg invented the printing press in Europe.
Who was the first person on the Moon?|Neil Armstrong was the first person on the Moon.
Who was the first person in space?|Yuri Gagarin was the first person in space.
Who composed the Ninth Symphony?|Ludwig van Beethoven composed the Ninth Symphony.
Who painted The Starry Night?|Vincent van Gogh painted The Starry Night.
Where is the Eiffel Tower?|The Eiffel Tower is in Paris.
Where is the Colosseum?|The Colosseum is in Rome.
Where is the Great Wall?|The Great Wall is in China.
Where are the pyramids of Giza?|The pyramids of Giza are in Egypt.
Where is the Statue of Liberty?|The Statue of Liberty is in New York.
Where is Machu Picchu?|Machu Picchu is in Peru.
Where is the Taj Mahal?|The Taj Mahal is in Agra, India.
Where is Big Ben?|Big Ben is in London.
When did the First World War begin?|The First World War began in 1914.
When did the Second World War end?|The Second World War ended in 1945.
When did people first land on the Moon?|People first landed on the Moon in 1969.
What gas do plants take in?|Plants take in carbon dioxide.
What gas do people breathe in to live?|People need oxygen from the air.
What organ pumps blood?|The heart pumps blood.
What is the largest organ of the body?|The skin is the largest organ of the body.
What star is closest to the Earth?|The Sun is the star closest to the Earth.
What language is spoken in the United States?|English is the main language in the United States.
What is the opposite of north?|The opposite of north is south.
What comes after Monday?|Tuesday comes after Monday.
What is a baby dog called?|A baby dog is called a puppy.
一周有几天？|一周有七天。
一年有几个月？|一年有十二个月。
一天有多少小时？|一天有二十四小时。
一小时有多少分钟？|一小时有六十分钟。
天空是什么颜色？|天空是蓝色的。
草是什么颜色？|草是绿色的。
世界上最高的山是什么？|世界上最高的山是珠穆朗玛峰。
世界上最大的海洋是什么？|世界上最大的海洋是太平洋。
最大的行星是什么？|最大的行星是木星。
水的化学式是什么？|水的化学式是 H2O。
蜘蛛有几条腿？|蜘蛛有八条腿。
长城在哪里？|长城在中国。
埃菲尔铁塔在哪里？|埃菲尔铁塔在巴黎。
谁提出了相对论？|爱因斯坦提出了相对论。
蒙娜丽莎是谁画的？|蒙娜丽莎是达芬奇画的。
中国最长的河是什么？|中国最长的河是长江。
太阳从哪边升起？|太阳从东方升起。
"""


def _pairs(table: str) -> list[list[str]]:
    return [entry.split(":") for entry in table.split()]


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _build() -> list[tuple[list[str], str]]:
    """Return (phrasings, answer) of every fact."""
    facts: list[tuple[list[str], str]] = []

    def add(answer: str, *asks: str) -> None:
        facts.append(([*asks], answer))

    for line in _LOOSE.strip().splitlines():
        ask, answer = line.split("|")
        lower = ask[0].lower() + ask[1:]
        add(answer, ask, ask[:-1], *((lower, lower[:-1]) if ask.isascii() else (f"请问{ask}",)))
    elements = [(name, sign, i + 1) for i, (name, sign) in enumerate(_pairs(_ELEMENTS))]
    elements += [(name, sign, int(n)) for name, sign, n in _pairs(_LATER)]
    for name, sign, number in elements:
        add(f"The chemical symbol of {name} is {sign}.", f"What is the chemical symbol of {name}?",
            f"What is the symbol for {name}?", f"chemical symbol of {name}")  # fmt: skip
        add(
            f"{sign} is the symbol of {name}.",
            f"Which element has the symbol {sign}?",
            f"What element is {sign}?",
        )
        add(f"The atomic number of {name} is {number}.", f"What is the atomic number of {name}?",
            f"atomic number of {name}")  # fmt: skip
    for a, b in _pairs(_OPPOSITES):
        asks = [f"What is the opposite of {a}?", f"opposite of {a}", f"What's the opposite of '{a}'?"]
        add(f"The opposite of {a} is {b}.", *asks)
    for a, b in _pairs(_YOUNG):
        add(
            f"A baby {a} is called {_article(b)}.",
            f"What is a baby {a} called?",
            f"What do you call a young {a}?",
        )
    for a, b in _pairs(_SOUNDS):
        one = _article(a)
        add(f"{one.capitalize()} {b}.", f"What sound does {one} make?", f"What does {one} do?")
    for a, b in _pairs(_LANGUAGES):
        add(f"People in {a} speak {b}.", f"What language is spoken in {a}?",
            f"Which language do people speak in {a}?", f"language of {a}")  # fmt: skip
    for a, b in _pairs(_MONEY):
        asks = [f"What is the currency of {a}?", f"What currency is used in {a}?", f"currency of {a}"]
        add(f"The currency of {a} is the {b}.", *asks)
    for a, b in _pairs(_CHINESE):
        asks = [f"How do you say '{a}' in Chinese?", f"What is {a} in Chinese?", f"Translate {a} to Chinese."]
        add(f"'{a}' in Chinese is {b}.", *asks)
        add(f"{b}的英文是 {a}。", f"{b}用英语怎么说？", f"{b}的英文是什么？")
    for i, month in enumerate(_MONTHS):
        name, days = month.split(":")
        after, nth = _MONTHS[(i + 1) % 12].split(":")[0], _ORDINALS[i]
        add(f"{name} has {days} days.", f"How many days does {name} have?", f"How many days are in {name}?")
        add(f"{after} comes after {name}.", f"Which month comes after {name}?", f"What month follows {name}?")
        add(f"The {nth} month of the year is {name}.", f"What is the {nth} month of the year?",
            f"Which month is the {nth}?")  # fmt: skip
    for i, day in enumerate(_DAYS):
        after, before = _DAYS[(i + 1) % 7], _DAYS[i - 1]
        add(f"{after} comes after {day}.", f"Which day comes after {day}?", f"What day comes after {day}?")
        add(f"{before} comes before {day}.", f"Which day comes before {day}?", f"What day is before {day}?")
    for nth, planet in zip(_ORDINALS, _PLANETS, strict=False):
        add(f"The {nth} planet from the Sun is {planet}.", f"Which planet is the {nth} from the Sun?",
            f"What is the {nth} planet?")  # fmt: skip
    for c in COUNTRIES:
        add(f"{c.name[0].upper()}{c.name[1:]} is in {c.continent}.", f"Which continent is {c.name} in?",
            f"On which continent is {c.name}?", f"Where is {c.name}?")  # fmt: skip
    # One answer per question: Singapore, Monaco and San Marino are countries as well as capitals.
    countries = {c.name for c in COUNTRIES}
    for c in COUNTRIES:
        if c.capital not in countries:
            add(f"{c.capital} is the capital of {c.name}.", f"{c.capital} is the capital of which country?",
                f"Which country has the capital {c.capital}?")  # fmt: skip
    return facts


FACTS = _build()


def fact(rng: random.Random) -> Turn:
    """Ask one fact."""
    asks, answer = rng.choice(FACTS)
    reasoning = (
        f"The user asks a fact I know. {answer}" if answer.isascii() else f"这是我知道的常识。{answer}"
    )
    return Turn(rng.choice(asks), Reply(answer, reasoning))


def capital_turn(country: Country, ask: str, chinese: bool) -> Turn:
    """Ask for one capital with the given phrasing (``{}`` stands for the country)."""
    if chinese:
        reasoning = f"用户问{country.zh_name}的首都。{country.zh_name}的首都是{country.zh_capital}。"
        return Turn(
            ask.format(country.zh_name), Reply(f"{country.zh_name}的首都是{country.zh_capital}。", reasoning)
        )
    reasoning = f"The user asks for the capital of {country.name}. It is {country.capital}."
    answer = f"The capital of {country.name} is {country.capital}."
    return Turn(ask.format(country.name), Reply(answer.replace("..", "."), reasoning.replace("..", ".")))


def capital(rng: random.Random) -> Turn:
    """Ask for a capital, one time in four in Chinese; now and then of a country that does not exist."""
    chinese = rng.random() < 0.25
    if rng.random() < 0.08 and not chinese:
        name = invented_name(rng)
        answer = f"I do not know a country called {name}."
        return Turn(
            rng.choice(CAPITAL_ASKS).format(name), Reply(answer, f"The user asks for {name}. {answer}")
        )
    return capital_turn(
        rng.choice(COUNTRIES), rng.choice(ZH_CAPITAL_ASKS if chinese else CAPITAL_ASKS), chinese
    )
