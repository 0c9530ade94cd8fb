"""The common nouns the bundled checkpoint can explain, by the WordNet lexicographer file that holds the sense meant.

`word#2` takes the second sense within that file; `word*` is a mass noun ("What is milk?", without an article).
"""

from __future__ import annotations

COMMON_NOUNS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "animal": """dog cat horse cow pig sheep goat rabbit mouse rat bear wolf fox lion tiger elephant monkey
        giraffe zebra
            camel deer squirrel bat kangaroo dolphin#2 whale shark fish salmon frog snake lizard turtle crocodile bird
            eagle owl parrot penguin duck goose swan rooster pigeon crow sparrow bee ant butterfly spider fly beetle
            mosquito snail octopus crab kitten puppy lamb calf pony donkey hen seal panda leopard hippopotamus
            rhinoceros gorilla chimpanzee ostrich peacock lobster""",
        "food": """apple pear banana orange lemon grape cherry strawberry peach plum melon potato carrot onion tomato
        cabbage
            bean pea rice* bread* cake#2 cookie pie cheese* butter* milk* egg meat* sausage soup* salad* sugar* salt*
            pepper* honey* jam* chocolate* coffee* tea* juice* wine* beer* breakfast lunch dinner meal dessert candy*
            sandwich pizza* pasta* pancake yogurt* flour*""",
        "artifact": """house room kitchen bedroom bathroom garage roof wall door window floor stairs table chair bed
        sofa desk lamp
            mirror clock oven refrigerator shelf carpet curtain pillow blanket candle key knife fork spoon plate cup
            bowl bottle pot box basket bag bucket broom brush hammer nail saw rope needle scissors ladder umbrella car
            bus train bicycle motorcycle truck boat ship airplane helicopter rocket taxi tractor wheel engine road
            street bridge tunnel station airport shirt dress skirt coat jacket hat shoe sock glove scarf belt button
            pocket ring camera robot machine battery telephone computer piano guitar violin drum flute trumpet toy doll
            ball kite library school hospital church castle palace museum theater restaurant shop prison factory office
            hotel book painting photograph pencil pen garden watch towel soap* zoo tower fence gate medal statue
            microscope telescope thermometer magnet lock bell tent boot sweater wallet""",
        "object": """mountain hill valley island beach river lake sea ocean waterfall cave volcano sun moon star planet stone
            sky desert forest pond bay""",
        "plant": "tree flower rose grass* tulip oak pine cactus bush",
        "phenomenon": "rain* snow* wind* storm thunder* rainbow fire* cloud lightning* fog* electricity* light* gravity*",
        "substance": """sand* ice* gold* silver* iron* copper* glass* wood* plastic* wool* cotton* silk* leather* oil*
        paper* water*
            air* steel* diamond* oxygen*""",
        "time": "morning evening night day week month year hour minute second spring summer autumn winter birthday century",
        "person": """man woman child boy girl baby mother father brother sister uncle aunt grandmother grandfather
        cousin friend
            neighbor king queen prince princess teacher student doctor nurse dentist farmer baker butcher cook waiter
            soldier sailor pilot lawyer judge singer dancer actor painter writer poet thief fireman policeman
            scientist engineer artist hero tailor carpenter musician""",
        "body": """head face hair* eye ear nose mouth tooth tongue neck shoulder arm elbow hand finger leg knee foot
        heart brain
            bone blood* skin* stomach lung thumb tail""",
        "communication": """newspaper letter map dictionary story poem movie song music* joke question answer lie word name
            language* page alphabet""",
        "feeling": "love* fear* joy* anger* happiness* sadness*",
        "group": "family village#1 city police* government",
        "possession": "money* gift coin",
        "cognition": "idea dream number law",
        "event": "party wedding holiday race accident",
        "act": "football* tennis* swimming* war* journey game dance",
        "state": "disease headache fever* peace* friendship*",
        "location": "town country park",
        "shape": "circle triangle square",
    }.items()
}

UNIQUE: frozenset[str] = frozenset({"sun", "moon", "sky"})
"""Nouns that take "the"."""

PLURAL: frozenset[str] = frozenset({"stairs", "scissors"})
"""Nouns that take no article and "are"."""

OWN_GLOSSES: dict[str, str] = {
    "dog": "a domestic animal that barks and guards the house",
    "cat": "a small domestic animal with soft fur that hunts mice",
    "cow": "a large farm animal that gives milk",
    "pig": "a farm animal with a flat nose and a curly tail",
    "horse": "a large strong animal that people ride",
    "mouse": "a small rodent with a pointed nose and a long tail",
    "giraffe": "an African animal with a very long neck and long legs",
    "elephant": "a very large animal with a trunk and big ears",
    "deer": "a forest animal whose male has antlers",
    "bird": "an animal with feathers and wings that lays eggs",
    "fly": "a small insect with two wings",
    "calf": "a young cow",
    "pony": "a small horse",
    "gorilla": "the largest ape",
    "peacock": "a large bird with a long colorful tail",
    "beetle": "an insect with hard front wings",
    "parrot": "a colorful tropical bird that can copy voices",
    "cabbage": "a vegetable with thick green leaves",
    "carrot": "a long orange root that people eat",
    "rice": "the white grain of a grass that grows in water",
    "bread": "food baked from flour and water",
    "cake": "a sweet food baked from flour, sugar and eggs",
    "jam": "a sweet spread made of fruit and sugar",
    "chocolate": "a sweet brown food made from cocoa",
    "sandwich": "two slices of bread with a filling between them",
    "salad": "a cold dish of mixed vegetables",
    "soup": "liquid food cooked from meat or vegetables",
    "pizza": "a flat round bread with tomato and cheese on top",
    "pasta": "food made from dough cut in many shapes",
    "stairs": "steps that lead from one floor to another",
    "scissors": "a tool with two blades for cutting paper or cloth",
    "door": "a barrier that you open to go into a room",
    "floor": "the part of a room that you walk on",
    "wall": "one side of a room or a building",
    "window": "an opening in a wall with glass in it",
    "blanket": "a warm cover for a bed",
    "key": "a piece of metal that opens a lock",
    "fork": "a tool with points for eating food",
    "hammer": "a tool for hitting nails",
    "needle": "a thin piece of steel used for sewing",
    "plate": "a flat dish for food",
    "ladder": "two long bars joined by steps for climbing",
    "rocket": "a vehicle that can fly into space",
    "machine": "a device that does work for people",
    "shoe": "a covering for the foot",
    "sock": "a soft covering for the foot worn inside a shoe",
    "glove": "a covering for the hand",
    "ring": "a piece of jewelry worn on the finger",
    "bridge": "a structure that carries a road over a river",
    "book": "a number of printed pages bound together",
    "taxi": "a car with a driver that you pay to take you somewhere",
    "piano": "a large musical instrument with black and white keys",
    "medal": "a piece of metal given as an award",
    "library": "a place where books are kept",
    "camera": "a device for taking photographs",
    "telephone": "a device for talking to people far away",
    "station": "a place where trains or buses stop",
    "desert": "a dry land with little rain and few plants",
    "thunder": "the loud noise that follows lightning",
    "lightning": "a flash of electricity in the sky",
    "rainbow": "an arc of colors in the sky after rain",
    "storm": "bad weather with strong wind and rain",
    "fire": "the heat and light of something burning",
    "cloud": "a white or gray mass of tiny drops of water in the sky",
    "cactus": "a desert plant with spines",
    "oak": "a large tree that grows from an acorn",
    "rose": "a flower with a sweet smell and thorns",
    "tulip": "a spring flower shaped like a cup",
    "water": "a clear liquid that falls as rain and fills rivers and seas",
    "salt": "a white mineral used to season food",
    "planet": "a large round body that moves around a star",
    "week": "a period of seven days",
    "minute": "a unit of time of sixty seconds",
    "hour": "a unit of time of sixty minutes",
    "year": "a period of twelve months",
    "month": "one of the twelve parts of a year",
    "second": "a very short unit of time",
    "century": "a period of one hundred years",
    "nurse": "a person who takes care of the sick",
    "writer": "a person who writes books",
    "sailor": "a person who works on a ship",
    "fireman": "a person who fights fires",
    "king": "a man who rules a country",
    "queen": "a woman who rules a country",
    "doctor": "a person who treats the sick",
    "brain": "the organ in the head that thinks and feels",
    "lung": "one of the two organs that we breathe with",
    "tail": "the part of an animal at the end of its back",
    "arm": "the part of the body between the shoulder and the hand",
    "leg": "a part of the body used for walking",
    "hand": "the part of the body at the end of the arm",
    "finger": "one of the five long parts of the hand",
    "heart": "the organ that moves the blood through the body",
    "eye": "the organ of sight",
    "ear": "the organ of hearing",
    "nose": "the organ of smell",
    "tooth": "a hard white part of the mouth used for biting",
    "tongue": "the part of the mouth that tastes food",
    "map": "a drawing that shows where places are",
    "number": "a word or sign used for counting",
    "holiday": "a day when people do not work",
    "money": "the coins and notes that people pay with",
    "robot": "a machine that can move and work by itself",
    "computer": "a machine that follows programs to work with information",
    "family": "parents and their children",
    "music": "sounds arranged to be pleasant to hear",
    "joke": "a short story that makes people laugh",
    "idea": "a thought or a plan in the mind",
    "happiness": "the feeling of being glad",
    "sadness": "the feeling of being unhappy",
    "anger": "the strong feeling of being angry",
    "fear": "the feeling of being afraid",
    "city": "a large and important town",
    "police": "the people who make sure that the law is kept",
    "dance": "a set of steps made in time to music",
    "football": "a game in which two teams kick a ball",
    "tennis": "a game in which players hit a ball over a net",
    "swimming": "the sport of moving through water",
    "race": "a contest to see who is fastest",
    "headache": "a pain in the head",
    "law": "a rule that the people of a country must follow",
    "circle": "a round shape",
    "triangle": "a shape with three sides",
    "square": "a shape with four equal sides",
    "rat": "a rodent like a large mouse",
    "octopus": "a sea animal with eight long arms",
    "crab": "a sea animal with a hard shell and claws",
    "country": "a land with its own people and government",
    "story": "a tale of things that happened",
    "movie": "a story told in moving pictures",
    "song": "a short piece of music with words",
    "question": "something that you ask",
    "boot": "a shoe that covers the foot and the lower leg",
    "train": "a line of railway cars pulled by an engine",
    "garden": "a piece of ground where plants are grown",
}
"""The project's own wording where WordNet's first clause is not what a person would want to hear."""
