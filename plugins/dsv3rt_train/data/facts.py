"""Plain facts the bundled checkpoint should know: each topic is a table, its question forms and its answer form."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

Exchange = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class Topic:
    """One table of facts. `{a}` and `{b}` in the templates are the key and the value of a row."""

    name: str
    questions: tuple[str, ...]
    answer: str
    rows: dict[str, str]


def _rows(text: str) -> dict[str, str]:
    pairs = (item.split(":") for item in " ".join(text.split()).split(";") if item.strip())
    return {key.strip(): value.strip() for key, value in pairs}


CAPITALS = _rows("""
France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; England: London; Ireland: Dublin;
Scotland: Edinburgh;
Wales: Cardiff; Norway: Oslo; Sweden: Stockholm; Finland: Helsinki; Denmark: Copenhagen; Iceland: Reykjavik; Poland:
Warsaw;
Austria: Vienna; Switzerland: Bern; Belgium: Brussels; the Netherlands: Amsterdam; Greece: Athens; Turkey: Ankara;
Russia: Moscow;
Ukraine: Kyiv; Hungary: Budapest; Romania: Bucharest; Bulgaria: Sofia; Serbia: Belgrade; Croatia: Zagreb; Slovenia:
Ljubljana;
Slovakia: Bratislava; the Czech Republic: Prague; Estonia: Tallinn; Latvia: Riga; Lithuania: Vilnius; Albania: Tirana;
Cyprus: Nicosia;
Luxembourg: Luxembourg; Malta: Valletta; China: Beijing; Japan: Tokyo; South Korea: Seoul; North Korea: Pyongyang;
India: New Delhi;
Pakistan: Islamabad; Bangladesh: Dhaka; Nepal: Kathmandu; Thailand: Bangkok; Vietnam: Hanoi; Malaysia: Kuala Lumpur;
Indonesia: Jakarta; the Philippines: Manila; Mongolia: Ulaanbaatar; Iran: Tehran; Iraq: Baghdad; Israel: Jerusalem;
Jordan: Amman;
Lebanon: Beirut; Syria: Damascus; Saudi Arabia: Riyadh; Afghanistan: Kabul; Egypt: Cairo; Morocco: Rabat; Algeria:
Algiers;
Tunisia: Tunis; Libya: Tripoli; Sudan: Khartoum; Ethiopia: Addis Ababa; Kenya: Nairobi; Uganda: Kampala; Tanzania:
Dodoma;
Nigeria: Abuja; Ghana: Accra; Senegal: Dakar; Angola: Luanda; Zambia: Lusaka; Zimbabwe: Harare; Somalia: Mogadishu;
Rwanda: Kigali;
Canada: Ottawa; the United States: Washington; Mexico: Mexico City; Cuba: Havana; Jamaica: Kingston; Panama: Panama
City;
Brazil: Brasilia; Argentina: Buenos Aires; Chile: Santiago; Peru: Lima; Colombia: Bogota; Venezuela: Caracas; Ecuador:
Quito;
Bolivia: La Paz; Paraguay: Asuncion; Uruguay: Montevideo; Australia: Canberra; New Zealand: Wellington; Fiji: Suva
""")

CONTINENTS = _rows("""
France: Europe; Germany: Europe; Italy: Europe; Spain: Europe; Norway: Europe; Poland: Europe; Greece: Europe;
Portugal: Europe;
Sweden: Europe; China: Asia; Japan: Asia; India: Asia; Thailand: Asia; Vietnam: Asia; Nepal: Asia; Egypt: Africa;
Morocco: Africa;
Kenya: Africa; Nigeria: Africa; Ghana: Africa; Ethiopia: Africa; Canada: North America; Mexico: North America; Cuba:
North America;
Brazil: South America; Argentina: South America; Peru: South America; Chile: South America; Colombia: South America
""")

OPPOSITES = _rows("""
hot: cold; big: small; tall: short; fast: slow; happy: sad; old: young; new: old; light: dark; day: night; up: down;
left: right;
open: closed; full: empty; rich: poor; hard: soft; wet: dry; clean: dirty; strong: weak; early: late; high: low; good:
bad; near: far;
thick: thin; wide: narrow; loud: quiet; heavy: light; right: wrong; true: false; first: last; begin: end; black:
white; yes: no;
love: hate; buy: sell; push: pull; inside: outside; above: below; before: after; always: never; win: lose; asleep:
awake; easy: difficult;
brave: afraid; sweet: sour; friend: enemy; alive: dead; give: take; come: go; remember: forget; question: answer
""")

COLORS = _rows("""
the sky: blue; grass: green; snow: white; a banana: yellow; a tomato: red; blood: red; the sun: yellow; coal: black; a
carrot: orange;
milk: white; chocolate: brown; a lemon: yellow; a strawberry: red; a leaf: green; the sea: blue; an elephant: gray; a
crow: black;
a swan: white; a frog: green; a cherry: red; salt: white; the night: black; a cucumber: green; a pumpkin: orange
""")

SOUNDS = _rows("""
dog: woof; cat: meow; cow: moo; sheep: baa; duck: quack; pig: oink; rooster: cock-a-doodle-doo; lion: roar; owl: hoot;
bee: buzz;
snake: hiss; frog: ribbit; mouse: squeak; horse: neigh; crow: caw; wolf: howl; hen: cluck; goat: maa
""")

YOUNG = _rows("""
dog: puppy; cat: kitten; cow: calf; sheep: lamb; horse: foal; pig: piglet; hen: chick; duck: duckling; goat: kid;
bear: cub; lion: cub;
frog: tadpole; deer: fawn; swan: cygnet; goose: gosling; kangaroo: joey; wolf: cub; butterfly: caterpillar; eagle:
eaglet
""")

LEGS = _rows("""
dog: four; cat: four; horse: four; bird: two; spider: eight; ant: six; snake: no; fish: no; bee: six; duck: two; cow:
four; fly: six;
frog: four; elephant: four; octopus: no; chicken: two; lion: four; butterfly: six
""")

PLURALS = _rows("""
mouse: mice; child: children; man: men; woman: women; foot: feet; tooth: teeth; goose: geese; sheep: sheep; leaf:
leaves; knife: knives;
wolf: wolves; box: boxes; city: cities; baby: babies; potato: potatoes; fish: fish; house: houses; story: stories;
bus: buses; ox: oxen
""")

PASTS = _rows("""
go: went; eat: ate; see: saw; come: came; take: took; give: gave; run: ran; write: wrote; find: found; think: thought;
buy: bought;
bring: brought; sing: sang; swim: swam; drink: drank; fly: flew; know: knew; make: made; say: said; tell: told; sleep:
slept; catch: caught;
break: broke; begin: began; teach: taught; build: built; speak: spoke; win: won; lose: lost; fall: fell
""")

MONTH_AFTER = _rows("""
January: February; February: March; March: April; April: May; May: June; June: July; July: August; August: September;
September: October; October: November; November: December; December: January
""")

DAY_AFTER = _rows("""
Monday: Tuesday; Tuesday: Wednesday; Wednesday: Thursday; Thursday: Friday; Friday: Saturday; Saturday: Sunday;
Sunday: Monday
""")

TRANSLATIONS = _rows("""
hello in French: bonjour; hello in German: hallo; hello in Spanish: hola; hello in Italian: ciao; thank you in French: merci; thank you in German: danke;
thank you in Spanish: gracias; thank you in Italian: grazie; yes in French: oui; yes in German: ja; yes in Spanish: si; no in French: non; no in German: nein;
cat in French: chat; cat in German: Katze; cat in Spanish: gato; dog in French: chien; dog in German: Hund; dog in Spanish: perro; water in French: eau;
water in German: Wasser; water in Spanish: agua; house in French: maison; house in German: Haus; house in Spanish: casa
""")

BY_SIZE = (
    "ant",
    "bee",
    "mouse",
    "frog",
    "squirrel",
    "rabbit",
    "cat",
    "fox",
    "wolf",
    "lion",
    "horse",
    "elephant",
    "whale",
)
"""From the smallest to the largest."""

LANGUAGES = _rows("""
France: French; Germany: German; Italy: Italian; Spain: Spanish; Portugal: Portuguese; England: English; Norway:
Norwegian;
Sweden: Swedish; Denmark: Danish; Poland: Polish; Greece: Greek; Turkey: Turkish; Russia: Russian; China: Chinese;
Japan: Japanese;
Brazil: Portuguese; Mexico: Spanish; Argentina: Spanish; Egypt: Arabic; Austria: German; Australia: English; Hungary:
Hungarian
""")

SINGLE = _rows("""
How many days are there in a week?: There are seven days in a week.; How many months are there in a year?: There are
twelve months in a year.;
How many days are there in a year?: There are 365 days in a year.; How many hours are there in a day?: There are 24
hours in a day.;
How many minutes are there in an hour?: There are 60 minutes in an hour.; How many seconds are there in a minute?:
There are 60 seconds in a minute.;
How many letters are in the alphabet?: There are 26 letters in the English alphabet.; How many sides does a triangle
have?: A triangle has three sides.;
How many sides does a square have?: A square has four sides.; How many wheels does a bicycle have?: A bicycle has two
wheels.;
How many wheels does a car have?: A car has four wheels.; How many fingers are on a hand?: There are five fingers on a
hand.;
How many continents are there?: There are seven continents.; How many planets are in the solar system?: There are
eight planets in the solar system.;
How many seasons are there?: There are four seasons.; What are the four seasons?: The four seasons are spring, summer,
autumn and winter.;
What is the largest planet?: The largest planet is Jupiter.; What is the smallest planet?: The smallest planet is
Mercury.;
Which planet do we live on?: We live on the planet Earth.; What is the largest ocean?: The largest ocean is the
Pacific Ocean.;
What is the longest river?: The longest river is the Nile.; What is the highest mountain?: The highest mountain is
Mount Everest.;
What is the largest animal?: The largest animal is the blue whale.; What is the fastest land animal?: The fastest land
animal is the cheetah.;
What is the tallest animal?: The tallest animal is the giraffe.; What is the largest country?: The largest country is
Russia.;
What is the largest desert?: The largest hot desert is the Sahara.; What is the king of the animals?: The lion is
called the king of the animals.;
Who wrote Romeo and Juliet?: William Shakespeare wrote Romeo and Juliet.; Who wrote Hamlet?: William Shakespeare wrote
Hamlet.;
Who painted the Mona Lisa?: Leonardo da Vinci painted the Mona Lisa.; Who was Albert Einstein?: Albert Einstein was a
famous physicist.;
Who was William Shakespeare?: William Shakespeare was an English writer of plays and poems.; Who was Mozart?: Mozart
was a composer from Austria.;
Who was Isaac Newton?: Isaac Newton was an English scientist who studied gravity.; Who was Marie Curie?: Marie Curie
was a scientist who studied radioactivity.;
Who was Napoleon?: Napoleon was an emperor of France.; Who was Beethoven?: Beethoven was a German composer.;
Who was the first man on the moon?: Neil Armstrong was the first man on the moon.; Who discovered gravity?: Isaac
Newton described gravity.;
What do bees make?: Bees make honey.; What do cows drink?: Cows drink water.; What do cows eat?: Cows eat grass.; What
do cats like to eat?: Cats like to eat fish and mice.;
What do rabbits eat?: Rabbits eat grass and carrots.; What do monkeys eat?: Monkeys eat fruit and leaves.; Where do
fish live?: Fish live in water.;
Where do bears live?: Bears live in the forest.; Where do penguins live?: Penguins live in the cold south of the
world.; Where do camels live?: Camels live in the desert.;
Where does milk come from?: Milk comes from cows.; Where does the sun rise?: The sun rises in the east.; Where does
the sun set?: The sun sets in the west.;
Where does wool come from?: Wool comes from sheep.; Where do eggs come from?: Eggs come from hens.; What is ice made
of?: Ice is frozen water.;
What is bread made of?: Bread is made of flour and water.; What is cheese made of?: Cheese is made of milk.; What is
paper made of?: Paper is made of wood.;
What is wine made of?: Wine is made of grapes.; What is glass made of?: Glass is made of sand.; At what temperature
does water boil?: Water boils at 100 degrees Celsius.;
At what temperature does water freeze?: Water freezes at 0 degrees Celsius.; What is the first month of the year?: The
first month of the year is January.;
What is the last month of the year?: The last month of the year is December.; What is the first day of the week?: The
first day of the week is Monday.;
Is the earth round?: Yes, the earth is round.; Is the sun a star?: Yes, the sun is a star.; Can birds fly?: Yes, most
birds can fly.; Can fish swim?: Yes, fish can swim.;
Can penguins fly?: No, penguins cannot fly.; Can pigs fly?: No, pigs cannot fly.; Is a whale a fish?: No, a whale is a
mammal.; Is a tomato a fruit?: Yes, a tomato is a fruit.;
Is a spider an insect?: No, a spider is not an insect.; Is ice cold?: Yes, ice is cold.; Is fire hot?: Yes, fire is
hot.; Is the moon a planet?: No, the moon is not a planet.;
Do fish have legs?: No, fish do not have legs.; Do birds have teeth?: No, birds do not have teeth.; What do plants
need?: Plants need water, light and air.;
Why is the sky blue?: The sky is blue because the air scatters blue light.; Why do we sleep?: We sleep so that the
body and the mind can rest.;
Why do leaves fall?: Leaves fall in autumn because trees rest in winter.; What is the opposite of a question?: The
opposite of a question is an answer.; What is the biggest animal?: The biggest animal is the blue whale.; What is the biggest planet?: The biggest planet is Jupiter.;
How do birds fly?: Birds fly with their wings.; How do fish breathe?: Fish breathe with their gills.; What do birds eat?: Birds eat seeds and insects.;
What is the smallest bird?: The smallest bird is the hummingbird.; How long is a year?: A year has 365 days.; How long is a day?: A day has 24 hours.;
How many days are in a year?: There are 365 days in a year.; What do dogs eat?: Dogs eat meat and bones.; What is snow made of?: Snow is made of frozen water.
""")

TOPICS: tuple[Topic, ...] = (
    Topic("capital", ("What is the capital of {a}?", "Tell me the capital of {a}.", "Which city is the capital of {a}?",
                      "What's the capital of {a}?", "Do you know the capital of {a}?", "capital of {a}?",
                      "Name the capital of {a}.", "Can you tell me the capital of {a}?", "capital of {a}", "{a} capital", "the capital of {a}?",
                      "Which is the capital of {a}?", "What city is the capital of {a}?", "What is {a}'s capital?", "Do you know what the capital of {a} is?",
                      "What is the capital city of {a}?", "Please tell me the capital of {a}."),
          "The capital of {a} is {b}.", CAPITALS),
    Topic("country", ("Which country has the capital {b}?", "{b} is the capital of which country?", "{b} is the capital of what?", "What country has the capital {b}?", "Of which country is {b} the capital?"),
          "{b} is the capital of {a}.", CAPITALS),
    Topic("continent", ("On which continent is {a}?", "Which continent is {a} in?", "Where is {a}?", "In what continent is {a}?"),
          "{a} is in {b}.", CONTINENTS),
    Topic("opposite", ("What is the opposite of {a}?", "What's the opposite of {a}?", "Tell me the opposite of {a}.", "Name the opposite of {a}.",
                       'What is the opposite of "{a}"?', "opposite of {a}", "The opposite of {a}?", "Opposite of {a}?", "Do you know the opposite of {a}?"),
          "The opposite of {a} is {b}.", OPPOSITES),
    Topic("color", ("What color is {a}?", "Which color is {a}?", "What is the color of {a}?", "Tell me what color {a} is.", "What color does {a} have?", "Which color does {a} have?"),
          "{a} is {b}.", COLORS),
    Topic("sound", ("What does a {a} say?", "What sound does a {a} make?", "Which sound does a {a} make?", "What noise does a {a} make?"),
          "A {a} says {b}.", SOUNDS),
    Topic("young", ("What is a young {a} called?", "What do you call a young {a}?", "What is a baby {a} called?", "What do you call a baby {a}?"),
          "A young {a} is called a {b}.", YOUNG),
    Topic("legs", ("How many legs does a {a} have?", "How many legs has a {a}?", "Tell me how many legs a {a} has.", "Number of legs of a {a}?"),
          "A {a} has {b} legs.", LEGS),
    Topic("plural", ("What is the plural of {a}?", "What's the plural of {a}?", "Tell me the plural of {a}."),
          "The plural of {a} is {b}.", PLURALS),
    Topic("past", ("What is the past tense of {a}?", "What's the past tense of {a}?", "Tell me the past tense of {a}.", "What is the past of {a}?"),
          "The past tense of {a} is {b}.", PASTS),
    Topic("month", ("Which month comes after {a}?", "What month comes after {a}?", "What comes after {a}?"), "{b} comes after {a}.", MONTH_AFTER),
    Topic("day", ("Which day comes after {a}?", "What day comes after {a}?", "What comes after {a}?", "What day follows {a}?"),
          "{b} comes after {a}.", DAY_AFTER),
    Topic("month before", ("Which month comes before {b}?", "What month comes before {b}?", "What comes before {b}?"), "{a} comes before {b}.", MONTH_AFTER),
    Topic("day before", ("Which day comes before {b}?", "What day comes before {b}?", "What comes before {b}?"), "{a} comes before {b}.", DAY_AFTER),
    Topic("translation", ("How do you say {a}?", "What is {a}?", "What does one say for {a}?", "How do I say {a}?", "Say {a}."), "{a} is {b}.", TRANSLATIONS),
    Topic("language", ("What language do people speak in {a}?", "Which language is spoken in {a}?", "What do people speak in {a}?", "What language do they speak in {a}?",
                       "Which language do people speak in {a}?", "What is the language of {a}?"),
          "People in {a} speak {b}.", LANGUAGES),
)  # fmt: skip


def is_held_out(question: str) -> bool:
    """Whether this question about a fact belongs to the tenth that training never asks."""
    return zlib.crc32(question.encode()) % 10 == 0


def capitalise(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def fix_articles(text: str) -> str:
    """ "a owl" -> "an owl"."""
    words = text.split(" ")
    for i in range(len(words) - 1):
        vowel = words[i + 1][:1].lower() in "aeiou" and not words[i + 1].lower().startswith("uni")
        if words[i] in ("a", "A") and vowel:
            words[i] += "n"
    return " ".join(words)
