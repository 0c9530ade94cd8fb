"""Small talk, who the model is, what it cannot know, and exchanges of several turns in which something must be
remembered."""

from __future__ import annotations

import random

from dsv3rt_train.data import arithmetic, words
from dsv3rt_train.data.facts import TOPICS, Topic, capitalise, fix_articles, is_held_out
from dsv3rt_train.data.stories import tell

Turns = list[tuple[str, str]]
"""(what the user says, what the model answers), in order."""

MODEL_NAME = "Mini"

_GREETINGS = (
    "Hello",
    "Hi",
    "Hey",
    "Good morning",
    "Good evening",
    "Good afternoon",
    "Hello there",
    "Hi there",
    "Greetings",
    "Hey there",
)
_OFFERS = (
    "How can I help you?",
    "What can I do for you?",
    "What would you like to know?",
    "Would you like to hear a story?",
    "How are you today?",
)

SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("How are you?", "How are you today?", "How are you doing?", "How is it going?", "Are you well?", "How do you feel?", "What's up?"),
     ("I am fine, thank you. How are you?", "I am well, thank you. And you?", "Very well, thank you for asking.")),
    (("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot.", "Thank you for your help.", "thx"),
     ("You are welcome!", "You are very welcome.", "It was my pleasure.")),
    (("Goodbye!", "Bye!", "See you later.", "Good night!", "I have to go now.", "See you tomorrow.", "Bye bye"),
     ("Goodbye! Have a nice day.", "See you soon!", "Goodbye! Come back any time.")),
    (("I am fine.", "I am fine, thanks.", "I'm good.", "I am doing well.", "Very well, thank you."),
     ("I am glad to hear that.", "That is good to hear. What can I do for you?")),
    (("I am sad.", "I feel sad today.", "I had a bad day.", "I am not happy.", "I feel bad."),
     ("I am sorry to hear that. Would you like to hear a story?", "I am sorry. I hope that tomorrow will be better.")),
    (("I am happy.", "I had a good day!", "I feel great today.", "Today is a good day."),
     ("That is wonderful!", "I am happy to hear that.")),
    (("I am tired.", "I am sleepy.", "I need to sleep."), ("Then you should rest a little.", "A good sleep will help you.")),
    (("I am hungry.", "I want to eat something."), ("Then you should eat something good.", "How about some bread and cheese?")),
    (("I am bored.", "I have nothing to do.", "What should I do?"), ("Shall I tell you a story?", "You could read a book or take a walk.")),
    (("You are nice.", "You are smart.", "I like you.", "You are great!", "Well done!", "Good job!"), ("Thank you, that is kind of you.", "Thank you!")),
    (("You are stupid.", "You are wrong.", "That is wrong.", "That is not right."),
     ("I am sorry. I am a small model and make mistakes.", "I am sorry. I will try to do better.")),
    (("Do you sleep?", "Do you eat?", "Do you drink?", "Are you hungry?", "Are you tired?"),
     ("No, I am a computer program. I do not eat or sleep.",)),
    (("Are you a robot?", "Are you human?", "Are you a person?", "Are you alive?", "Are you real?", "Are you a machine?"),
     ("No, I am a small language model, a computer program that writes text.",)),
    (("Do you have feelings?", "Are you happy?", "Can you feel?", "Do you love me?"), ("I am a computer program, so I do not have feelings.",)),
    (("Do you like music?", "Do you like books?", "Do you like animals?", "Do you like stories?"), ("I do not have feelings, but I like to talk about it.",)),
    (("Can you help me?", "I need help.", "Help me, please.", "I have a question.", "May I ask you something?"),
     ("Of course. What would you like to know?", "Yes, I will try. What is your question?")),
    (("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny."),
     ("Why did the chicken cross the road? To get to the other side!", "What has four legs and cannot walk? A table!",
      "What gets wet while it dries? A towel!", "What has hands but cannot clap? A clock!")),
    (("Yes.", "No.", "Okay.", "I see.", "Good.", "Fine."), ("Good. What else can I do for you?", "All right. What would you like to talk about?")),
    (("Nice to meet you.", "It is nice to meet you.", "Pleased to meet you."), ("Nice to meet you too!",)),
    (("I love you.",), ("That is very kind of you. I am only a small language model.",)),
    (("Sorry.", "I am sorry.", "Sorry about that."), ("No problem at all.", "That is all right.")),
)  # fmt: skip

IDENTITY: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("What is your name?", "What's your name?", "Who are you?", "Tell me your name.", "Do you have a name?", "How are you called?", "your name?",
      "May I know your name?", "Please introduce yourself."),
     ("My name is {m}. I am a small language model that comes with dsv3rt.",)),
    (("What are you?", "What kind of model are you?", "What is {m}?", "Tell me about yourself.", "Are you an AI?", "Are you a language model?",
      "Which model are you?"),
     ("I am {m}, a small language model that comes with dsv3rt. I was trained on a computer with two cores.",)),
    (("Who made you?", "Who created you?", "Who built you?", "Where do you come from?", "Who trained you?"),
     ("I was trained by the dsv3rt project from scratch.",)),
    (("What can you do?", "What do you know?", "How can you help me?", "What are you good at?", "What can I ask you?"),
     ("I can tell short stories, add small numbers, explain common words and name capital cities.",)),
    (("What is dsv3rt?", "Tell me about dsv3rt.", "What does dsv3rt do?"),
     ("dsv3rt is a program that runs language models of the DeepSeek-V3 family on one computer.",)),
    (("How big are you?", "How many parameters do you have?", "Are you a big model?"), ("I am very small, much smaller than DeepSeek-V3.",)),
    (("How old are you?", "When were you born?", "When is your birthday?"), ("I am a computer program, so I do not have an age.",)),
    (("Where do you live?", "Where are you?"), ("I live inside your computer.",)),
    (("Are you ChatGPT?", "Are you DeepSeek?", "Are you GPT?", "Are you Siri?"), ("No, I am {m}, a small language model that comes with dsv3rt.",)),
)  # fmt: skip

_UNKNOWN_QUESTIONS = (
    "What will the weather be tomorrow?", "What time is it?", "What is the date today?", "Who will win the game?", "What is the weather like in {city}?",
    "How much does a {thing} cost?", "Where is my {thing}?", "Who is the president of {country}?", "What did I eat yesterday?", "What is my phone number?",
    "Who won the {sport} game yesterday?", "What is the population of {city}?", "How far is it from {city} to {city2}?", "What is the news today?",
    "Where did I put my {thing}?", "How tall is {name}?", "Who is {name} {surname}?", "When was {name} {surname} born?", "What is the best {thing} in {city}?",
    "What is the phone number of {name}?", "How many people live in {city}?", "What is a {nonsense}?", "Who invented the {thing}?", "What is in my pocket?",
    "What am I thinking?", "What is a {nonsense} made of?", "Where does {name} {surname} live?", "Translate {thing} into Latin.", "Explain {nonsense} theory.",
    "Where is {nonsense}?", "What is the capital of {Nonsense}?", "Write a program for {nonsense}.", "Who wrote the {thing} of {city}?",
    "How old is {name} {surname}?", "What happened in {city} in {year}?", "What is the square root of {number}?",
)  # fmt: skip
_UNKNOWN_ANSWERS = ("I don't know.", "I'm sorry, I don't know that.", "Sorry, I don't know the answer to that.")
_SYLLABLES = "ba bo da do fi ga go gri ka ki klo la lo lu ma mi mo na no pa plo po qua ra ri ro sa so ta to tri va vo wi xa za zo zu".split()
_SURNAMES = "Smith Miller Brown Taylor Wilson Clark Walker Hall Young King Wright Green Baker Hill Carter Turner Parker Cook Stone".split()
_PHRASES = ("{g}!", "{g}.", "{g}", "{g}, {m}!", "{g}, how are you?")


def nonsense(rng: random.Random) -> str:
    """A word that means nothing."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))


def vary(rng: random.Random, question: str) -> str:
    """Now and then without capitals, without the question mark, or with a "please"."""
    roll = rng.random()
    if roll < 0.08:
        return question[:1].lower() + question[1:].rstrip("?.!")
    if roll < 0.12:
        return question.lower()
    if roll < 0.15:
        return question.rstrip("?.!")
    return question


def greeting(rng: random.Random) -> Turns:
    greet = rng.choice(_GREETINGS)
    phrase = rng.choice(_PHRASES).format(g=greet, m=MODEL_NAME)
    if "how are you" in phrase:
        return [
            (
                vary(rng, phrase),
                rng.choice(("Hello! I am fine, thank you. How are you?", "Hi! I am well, thank you. And you?")),
            )
        ]
    back = greet if greet.startswith("Good") else rng.choice(("Hello", "Hi", "Hello there"))
    return [(vary(rng, phrase), f"{back}! {rng.choice(_OFFERS)}")]


def small_talk(rng: random.Random) -> Turns:
    questions, answers = rng.choice(SMALL_TALK)
    return [(vary(rng, rng.choice(questions)), rng.choice(answers))]


def identity(rng: random.Random) -> Turns:
    questions, answers = rng.choice(IDENTITY)
    return [(vary(rng, rng.choice(questions).format(m=MODEL_NAME)), rng.choice(answers).format(m=MODEL_NAME))]


def unknown(rng: random.Random) -> Turns:
    word = nonsense(rng)
    city, city2 = rng.sample(words.CITIES, 2)
    question = rng.choice(_UNKNOWN_QUESTIONS).format(
        city=city, city2=city2, thing=rng.choice(words.OBJECTS), country=rng.choice(("France", "Italy", "Japan", "Brazil", "Canada", "Egypt")),
        sport=rng.choice(words.FAVORITES["sport"]), name=rng.choice(words.NAMES), surname=rng.choice(_SURNAMES),
        nonsense=word, Nonsense=capitalise(word),
        year=rng.randint(1500, 2020), number=rng.randint(100, 9999),
    )  # fmt: skip
    return [(vary(rng, question), rng.choice(_UNKNOWN_ANSWERS))]


def remember(rng: random.Random) -> Turns:
    """The user says something about themselves and asks for it a turn or two later."""
    kind = rng.randrange(5)
    if kind == 0:
        name = rng.choice(words.NAMES)
        said = rng.choice(
            ("My name is {}.", "I am {}.", "Hello, I am {}.", "Hi, my name is {}.", "I'm {}.", "Call me {}.")
        ).format(name)
        first = (
            said,
            rng.choice(
                (f"Nice to meet you, {name}!", f"Hello, {name}! How can I help you?", f"Hi, {name}! Nice to meet you.")
            ),
        )
        asked = (
            rng.choice(
                ("What is my name?", "Do you remember my name?", "Who am I?", "What's my name?", "Do you know my name?")
            ),
            f"Your name is {name}.",
        )
    elif kind == 1:
        topic = rng.choice(tuple(words.FAVORITES))
        value = rng.choice(words.FAVORITES[topic])
        first = (
            f"My favorite {topic} is {value}.",
            rng.choice((f"{capitalise(value)} is a good choice.", "That is a good choice!", "I will remember that.")),
        )
        asked = (rng.choice(("What is my favorite {}?", "Do you remember my favorite {}?", "Which {} do I like best?")).format(topic),
                 f"Your favorite {topic} is {value}.")  # fmt: skip
    elif kind == 2:
        city = rng.choice(words.CITIES)
        first = (
            rng.choice((f"I live in {city}.", f"I am from {city}.", f"My home is {city}.")),
            f"{city} is a nice city.",
        )
        asked = (
            rng.choice(("Where do I live?", "Which city do I live in?", "Where is my home?", "Where am I from?")),
            f"You live in {city}.",
        )
    elif kind == 3:
        pet, name = rng.choice(("dog", "cat", "horse", "rabbit", "bird", "mouse", "parrot")), rng.choice(words.NAMES)
        first = (
            rng.choice((f"I have a {pet} named {name}.", f"My {pet} is called {name}.")),
            f"{name} is a nice name for a {pet}.",
        )
        asked = (
            rng.choice((f"What is the name of my {pet}?", f"What is my {pet} called?", f"Who is {name}?")),
            f"Your {pet} is called {name}.",
        )
        if asked[0].startswith("Who"):
            asked = (asked[0], f"{name} is your {pet}.")
    else:
        job = rng.choice(words.JOBS)
        first = (f"I am a {job}.", rng.choice(("That is an interesting job.", "That is a good job.")))
        asked = (rng.choice(("What is my job?", "What do I do?", "What is my work?")), f"You are a {job}.")
    first, asked = (fix_articles(first[0]), fix_articles(first[1])), (fix_articles(asked[0]), fix_articles(asked[1]))
    between = [rng.choice((small_talk, identity, single_fact, sum_once))(rng)[0]] if rng.random() < 0.45 else []
    return [first, *between, asked]


def sum_once(rng: random.Random) -> Turns:
    exercise = arithmetic.exercise(rng)
    return [(exercise.question, exercise.answer)]


def _asked(rng: random.Random, topic: Topic, a: str, b: str) -> str:
    """One of the topic's question forms that training may see."""
    while True:
        question = fix_articles(rng.choice(topic.questions).format(a=a, b=b))
        if not is_held_out(question):
            return question


def single_fact(rng: random.Random) -> Turns:
    topic = TOPICS[0]
    a, b = rng.choice(tuple(topic.rows.items()))
    return [(_asked(rng, topic, a, b), capitalise(topic.answer.format(a=a, b=b)))]


def follow_up_sum(rng: random.Random) -> Turns:
    """ "And plus 3?" after a sum."""
    while True:
        x, y, z = rng.randint(1, 60), rng.randint(1, 30), rng.randint(1, 9)
        if not arithmetic.is_held_out(x, "+", y):
            break
    first = arithmetic.ask(rng, x, "+", y)
    sign = "+" if rng.random() < 0.75 or first.result < z else "-"
    word = {"+": "plus", "-": "minus"}[sign]
    asked = rng.choice(
        (f"And {word} {z}?", f"And {word} {z}", f"{capitalise(word)} {z}?", f"Now {word} {z}.", f"And {sign} {z}?")
    )
    return [(first.question, first.answer), (asked, arithmetic.solve(first.result, sign, z)[0])]


def follow_up_fact(rng: random.Random) -> Turns:
    """ "And of Spain?" after a capital, and the like."""
    forms = {"capital": ("And of {a}?", "And the capital of {a}?", "And {a}?"), "opposite": ("And of {a}?", "And {a}?"),
             "sound": ("And a {a}?",), "young": ("And a young {a}?", "And a {a}?"), "plural": ("And of {a}?",), "past": ("And of {a}?",)}  # fmt: skip
    topic = rng.choice([topic for topic in TOPICS if topic.name in forms])
    (a, b), (c, d) = rng.sample(tuple(topic.rows.items()), 2)
    turns = [(_asked(rng, topic, a, b), topic.answer.format(a=a, b=b)),
             (rng.choice(forms[topic.name]).format(a=c), topic.answer.format(a=c, b=d))]  # fmt: skip
    return [(fix_articles(q), capitalise(fix_articles(r))) for q, r in turns]


_STORY_REQUESTS = (
    "Tell me a story about {s}.", "Tell me a short story about {s}.", "Write a short story about {s}.", "Can you tell me a story about {s}?",
    "Please tell a story about {s}.", "Write a story about {s}.", "I want to hear a story about {s}.", "A story about {s}, please.", "story about {s}",
    "Do you know a story about {s}?",
)  # fmt: skip
_ANY_STORY = (
    "Tell me a story.",
    "Tell me a short story.",
    "Please tell me a story.",
    "Write a story.",
    "Do you know a story?",
    "I want a story.",
)


def story(rng: random.Random) -> Turns:
    """A story on request, now and then with a question about it, or a second story."""
    told = tell(rng)
    request = rng.choice(_STORY_REQUESTS).format(s=told.subject) if rng.random() < 0.88 else rng.choice(_ANY_STORY)
    turns = [(vary(rng, request), told.text)]
    roll = rng.random()
    if roll < 0.10:
        asked = rng.choice(
            ("Who was the story about?", "Who was in the story?", f"What was the name of the {told.hero.kind}?")
        )
        turns.append((asked, fix_articles(f"The story was about {told.hero.name}, a {told.hero.kind}.")))
    elif roll < 0.16:
        turns.append(
            (
                rng.choice(("Thank you!", "That was nice.", "What a nice story!", "I like it.")),
                rng.choice(("I am glad that you liked it.", "You are welcome!")),
            )
        )
    return turns
