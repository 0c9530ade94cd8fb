"""Word lists the generators draw from. All of them are the project's own."""

from __future__ import annotations

GIRLS = tuple(
    """Anna Emma Mia Lily Sara Nora Ella Clara Ruby Alice Lucy Grace Rosa Julia Eva Maya Ivy Hanna Lena Zoe Molly Daisy Tina
    Olivia Sophie Amy Kate Jane Laura Maria Helen Nina Vera Ada Iris""".split()
)
BOYS = tuple(
    """Tom Ben Max Leo Sam Jack Finn Oscar Hugo Adam Peter Paul Noah Luke Theo Felix Simon David Oliver Henry Jonas Daniel Mark
    Eric Martin George Robert James John Nick Alex Victor Anton Otto Toby""".split()
)
NAMES = GIRLS + BOYS
RARE_GIRLS = tuple(
    "Bella Diana Linda Lisa Monica Nadia Sonia Tanya Rita Veronica Paula Amanda Gina Martha Wanda Matilda".split()
)
RARE_BOYS = tuple(
    "Bob Bill Fred Tim Jim Ron Dan Ted Steve Mike Frank Walter Carlos Pedro Omar Ivan Igor Hans Arthur Bruno".split()
)
"""Heroes have them only where a story is asked for by the name."""

ANIMALS = tuple(
    """fox bear rabbit mouse cat dog wolf owl frog duck hedgehog squirrel turtle lion tiger elephant monkey horse pig goat sheep
    cow hen crow penguin whale dolphin snail bee ant butterfly spider deer donkey kitten puppy parrot goose swan crab fish
    camel giraffe zebra bat beaver mole robin sparrow""".split()
)
PEOPLE = tuple(
    """girl boy baker farmer king queen prince princess teacher sailor painter singer doctor fisherman gardener tailor soldier
    pilot dancer knight shepherd student cook clockmaker carpenter grandmother grandfather wizard giant pirate dragon robot
    """.split()
)
OBJECTS = tuple(
    """key lamp ball kite book clock hat drum flute coin ring box bell boat map mirror umbrella shoe scarf basket candle doll
    bicycle balloon button cup spoon violin guitar lantern feather shell stone pencil letter blanket pillow cake apple star
    puzzle camera bottle necklace crown sword painting teapot""".split()
)
PLACES = tuple(
    """forest garden castle village river lake island mountain farm cave meadow beach valley city market desert tower library
    school mill bridge hill harbor""".split()
)
WEATHER = ("rain", "snow", "wind", "storm", "fog", "sun")

TRAITS = tuple(
    """little young small old brave kind clever shy curious happy quiet lazy proud hungry gentle cheerful lonely busy careful
    funny friendly patient stubborn sleepy""".split()
)
COLORS = ("red", "blue", "green", "yellow", "white", "black", "golden", "silver", "brown", "purple")
FOODS = tuple(
    """an-apple a-pear some-bread a-piece-of-cheese a-cake some-berries a-bowl-of-soup a-cookie some-nuts a-carrot a-plum
    a-sandwich some-honey a-pie a-pancake""".split()
)
SKILLS = ("swim", "sing", "dance", "read", "paint", "fly a kite", "bake bread", "play the flute", "ride a bicycle", "climb trees",
          "skate", "write", "play the drum", "cook soup", "whistle", "count to one hundred")  # fmt: skip
FEARS = (
    "the dark",
    "thunder",
    "deep water",
    "loud noises",
    "the big forest",
    "high places",
    "strangers",
    "the old house",
)
FAVORITES = {
    "color": ("red", "blue", "green", "yellow", "purple", "orange", "pink", "brown"),
    "food": ("pizza", "soup", "rice", "pasta", "bread", "cheese", "chocolate", "salad", "fish", "cake"),
    "animal": ("the dog", "the cat", "the horse", "the owl", "the fox", "the whale", "the lion", "the rabbit"),
    "season": ("spring", "summer", "autumn", "winter"),
    "sport": ("football", "tennis", "swimming", "running", "chess", "basketball"),
}
CITIES = ("Paris", "London", "Berlin", "Rome", "Madrid", "Oslo", "Vienna", "Lisbon", "Dublin", "Prague", "Tokyo", "Boston",
          "Chicago", "Toronto", "Sydney", "Cairo", "Athens", "Warsaw", "Munich", "Milan")  # fmt: skip
JOBS = ("teacher", "doctor", "nurse", "cook", "farmer", "pilot", "painter", "student", "engineer", "writer", "baker", "driver",
        "lawyer", "gardener", "singer", "carpenter")  # fmt: skip
