"""Word lists shared by the generators, random names and codes, and the train / held-out split."""

from __future__ import annotations

import random
import zlib

NAMES = """Anna Tom Maria John Lucy Peter Sara David Emma Paul Nina Oscar Julia Max Clara Leo Rosa Ben Eva Felix Ida
Hugo Lena Karl Mia Noah Olga Ravi Sofia Tariq Uma Victor Wei Yuki Zoe Ali Bella Carlos Diana Erik""".split()
ZH_NAMES = "小明 小红 小李 小王 小张 小刚 小丽 小华 小芳 小强".split()
OBJECTS = """apples books coins pencils stamps marbles oranges cards shells eggs flowers keys stones tickets cookies
candles bottles boxes chairs buttons""".split()
ADJECTIVES = """amber silver crimson hidden frozen golden ancient quiet broken purple hollow distant copper velvet
gentle wooden scarlet misty northern rusty marble emerald lonely crooked shining bitter clever dusty eager faded
giant humble ivory jagged kindly lunar mighty narrow oaken pale rapid secret tidy urban vivid windy young zesty
azure brave calm dark early fierce grand happy icy jolly keen loud merry neat olive proud royal solid tall warm""".split()
NOUNS = """falcon harbour lantern castle orchard bridge tiger garden engine violin mountain anchor river temple wagon
compass library tower forest mirror dragon island kettle rabbit station cabinet market pigeon saddle thunder umbrella
village whistle zebra ladder museum needle ocean palace quarry rocket school turtle valley window bakery cellar donkey
eagle factory gate hammer inn jacket kitchen lion meadow nest oven parrot queen robot sailor theatre vault wolf yacht
badger camel desk elephant fountain glacier hotel igloo jungle kingdom lake monkey notebook owl piano quilt ranch
statue tunnel unicorn volcano waterfall bicycle chapel dolphin estate fridge guitar helmet iron jewel kite lemon""".split()
COMMON = """stone water light house table green music paper cloud bread horse night smile train plant sugar world dream
beach chair dance earth field glass heart juice knife lemon money north opera phone quick radio sheep tooth uncle voice
wheat youth zebra apple brush candy daisy eagle flame grape honey ivory jelly koala latte mango nurse olive pearl queen
river snake tiger under video whale cat dog sun moon star tree book fish bird hand door ship rain snow wind fire gold
milk cake lamp ring road rock salt sand seed shoe sock song soup tail tent time town wall wave wolf wood yard king
hello orange banana cherry garden window winter summer spring autumn silver purple yellow planet rocket guitar violin
doctor farmer teacher student kitten puppy monkey rabbit turtle dragon castle bridge island forest desert ocean valley
mountain computer keyboard elephant butterfly umbrella strawberry chocolate sandwich telephone newspaper""".split()

_ONSETS = "b br c ch d dr f g gr h j k kl l m n p pr qu r s sh st t th tr v w z".split()
_VOWELS = "a e i o u ai ea oo ou".split()
_CODAS = ["", "", "l", "m", "n", "r", "s", "t", "nd", "rk", "ld", "x"]


def held_out(*key: object) -> bool:
    """Say whether an item belongs to the evaluation: a fixed tenth of all keys, whatever the seed."""
    return zlib.crc32(repr(key).encode()) % 10 == 0


def invented_name(rng: random.Random) -> str:
    """Return a pronounceable name that is in no list, such as 'Drealdoor'."""
    syllables = (
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.randint(2, 3))
    )
    return "".join(syllables).capitalize()


def number_code(rng: random.Random, low: int = 4, high: int = 7) -> str:
    """Return a code of ``low`` to ``high`` random digits."""
    return "".join(rng.choice("0123456789") for _ in range(rng.randint(low, high)))
