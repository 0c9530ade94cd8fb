"""What stories can be asked to be about, beside the heroes and things of words.py: by kind, since each kind has plots of its
own in subject_plots.py."""

from __future__ import annotations

from dsv3rt_train.data import words
from dsv3rt_train.data.nouns import COMMON_NOUNS


def _counted(*kinds: str) -> tuple[str, ...]:
    """The nouns of these kinds that take an article and have a plural in "s"."""
    entries = (entry for kind in kinds for entry in COMMON_NOUNS[kind] if not entry.endswith("*"))
    return tuple(noun for entry in entries if not (noun := entry.partition("#")[0]).endswith("s"))


THINGS = tuple(sorted({*words.OBJECTS, *_counted("artifact", "food", "plant", "possession", "communication"), *"""
    wheel sled kettle whistle compass suitcase telescope statue jar bubble marble snowball pumpkin acorn egg seed leaf nest
    pearl diamond stamp postcard diary cushion broom bench stool lighthouse windmill sandcastle treehouse snowflake raindrop
    mushroom sunflower wand potion crystal mask costume robe carpet chimney fountain anchor net paddle raft bagpipe harp
    cello trumpet radio television phone microphone magnet toolbox screwdriver backpack lunchbox notebook eraser crayon
    paintbrush sailboat canoe submarine spaceship skateboard scooter wagon carriage fridge toaster teddy teacup saucer
    """.split()}))  # fmt: skip
THING_TRAITS = tuple("""red blue green yellow white black golden silver little big old new tiny magic wooden strange
    broken lost beautiful round shiny heavy secret singing talking flying""".split())  # fmt: skip

FERRIES = tuple(
    "train bus ship boat plane balloon airplane helicopter submarine spaceship ferry steamboat tram rocket coach".split()
)
"""What one buys a ticket for."""
VEHICLES = (*FERRIES, *"car truck tractor sled taxi bicycle motorcycle wagon canoe raft carriage scooter van".split())

SKY: dict[str, str] = {
    **{f"the {name}": f"the {name}" for name in "moon sun sky stars clouds rainbow".split()},
    **{f"a {name}": f"the {name}" for name in "star planet comet rainbow cloud".split()},
    "stars": "the stars", "clouds": "the clouds", "space": "the stars", "outer space": "the stars", "moon": "the moon", "sun": "the sun",
}  # fmt: skip
"""What one looks up to: as asked for, and as told."""

LAND: dict[str, str] = {
    **{f"the {name}": f"the {name}" for name in "sea ocean desert jungle mountains city forest river lake beach zoo circus park".split()},
    **{f"a {name}": f"the {name}" for name in
       "river lake mountain island forest waterfall volcano cave beach valley jungle glacier hill city castle park zoo circus "
       "museum lighthouse harbor farm village desert meadow garden tower market bridge palace".split()},
}  # fmt: skip
"""What one can travel to: as asked for, and as told."""

WEATHER: dict[str, str] = {
    "rain": "the rain", "the rain": "the rain", "snow": "the snow", "wind": "the wind", "the wind": "the wind", "a storm": "the storm",
    "thunder": "the thunder", "fog": "the fog", "winter": "the winter", "summer": "the summer", "autumn": "the autumn", "spring": "the spring",
    "a rainy day": "the rain", "a snowy day": "the snow", "a windy day": "the wind", "a stormy night": "the storm", "ice": "the ice", "the cold": "the cold", "a cold winter": "the winter", "a hot summer": "the heat",
    "a foggy morning": "the fog", "a rainy day in a small town": "the rain", "a sunny day": "the sun",
}  # fmt: skip
"""As asked for, and as told."""

SEASONS = ("the spring", "the summer", "the autumn")
"""As told. From these, nobody has to hide."""

INSIDE = tuple(
    "forest garden castle village cave meadow valley city market desert tower library school mill harbor".split()
)
"""The places that one is in."""

EVENTS = tuple("birthday wedding party picnic festival dance parade concert feast fair".split())

GROUPS: dict[str, tuple[str, str]] = {
    "two sisters": ("sisters", "f"), "two brothers": ("brothers", "m"), "two friends": ("friends", "any"), "two boys": ("boys", "m"),
    "two girls": ("girls", "f"), "two children": ("children", "any"), "twins": ("twins", "any"), "a brother and a sister": ("children", "any"),
    "two neighbors": ("neighbors", "any"), "best friends": ("best friends", "any"), "two kings": ("kings", "m"), "two queens": ("queens", "f"),
    **{f"two {animal}": (animal, "any") for animal in
       "mice cats dogs foxes bears rabbits frogs birds ducks owls squirrels monkeys kittens puppies penguins pigs goats bees lions "
       "horses wolves turtles elephants".split()},
}  # fmt: skip
"""Pairs of heroes: in the plural, and of which sex their names are."""

CREATURES = tuple(
    """snowman mermaid ghost fairy witch elf dwarf dinosaur unicorn monster alien troll goblin phoenix vampire scarecrow
    astronaut detective fireman policeman nurse engineer scientist writer clown magician hunter miner postman waiter thief judge
    captain man woman uncle aunt baby child butcher lawyer dentist poet inventor beekeeper explorer juggler blacksmith
    princess mother father sister brother son daughter friend neighbor stranger teenager
    panda koala kangaroo seal shark worm ladybug dragonfly raccoon badger otter swallow seagull rooster lamb calf foal pony hamster
    chicken rat toad lizard crocodile hippo rhino gorilla ostrich peacock lobster octopus jellyfish starfish eagle hawk snake
    salmon leopard walrus chipmunk caterpillar firefly grasshopper cricket magpie stork woodpecker swordfish kitty bunny bird
    """.split()
)
"""Heroes that are rarer than those of words.py."""
FEMALE_CREATURES = frozenset("mermaid fairy witch nurse woman aunt princess mother sister daughter".split())
MALE_CREATURES = frozenset("snowman fireman policeman postman man uncle father brother son rooster blacksmith".split())
