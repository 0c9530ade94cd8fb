"""Small talk, who the model is, what it cannot know, and exchanges of several turns in which something must be
remembered."""

from __future__ import annotations

import random

from dsv3rt_train.data import arithmetic, memory, words
from dsv3rt_train.data.facts import (
    BY_SIZE,
    CAPITALS,
    CONTINENTS,
    LANGUAGES,
    TOPICS,
    Topic,
    capitalise,
    fix_articles,
    is_held_out,
)
from dsv3rt_train.data.memory import nonsense
from dsv3rt_train.data.stories import tell

Turns = list[tuple[str, str]]
"""(what the user says, what the model answers), in order."""

MODEL_NAME = "Mini"

_GREETINGS = ("Hello", "Hi", "Hey", "Good morning", "Good evening", "Good afternoon", "Hello there", "Hi there", "Greetings", "Hey there", "Hiya", "Howdy",
              "Good day", "Yo", "hello", "hi", "Hello again", "Hallo", "Hello friend")  # fmt: skip
_OFFERS = (
    "How can I help you?",
    "What can I do for you?",
    "What would you like to know?",
    "Would you like to hear a story?",
    "How are you today?",
)

SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("How are you?", "How are you today?", "How are you doing?", "How is it going?", "Are you well?", "How do you feel?", "What's up?", "how r u", "How have you been?",
      "How is your day?", "How are things?", "Is everything okay?", "And how are you?", "And you?", "what's going on?", "Are you okay?"),
     ("I am fine, thank you. How are you?", "I am well, thank you. And you?", "Very well, thank you for asking.")),
    (("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot.", "Thank you for your help.", "thx", "Thanks, that helps.", "Great, thanks.",
      "ok thanks", "Cool, thank you.", "That was helpful.", "ty", "Thank you so much!"),
     ("You are welcome!", "You are very welcome.", "It was my pleasure.")),
    (("Goodbye!", "Bye!", "See you later.", "Good night!", "I have to go now.", "See you tomorrow.", "Bye bye", "See you!", "cya",
      "I am leaving.", "That's all for today.", "Have a nice day!", "Good bye", "ok bye", "Talk to you later."),
     ("Goodbye! Have a nice day.", "See you soon!", "Goodbye! Come back any time.")),
    (("I am fine.", "I am fine, thanks.", "I'm good.", "I am doing well.", "Very well, thank you.", "I'm fine too.", "good, thanks", "I am great, thanks.",
      "Not bad.", "Pretty good.", "I'm okay.", "I am well too.", "fine thanks", "All good."),
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
    (("Do you like music?", "Do you like books?", "Do you like animals?", "Do you like stories?", "Do you like pizza?", "Do you like cats?", "Do you like dogs?",
      "Do you like chocolate?", "Do you like football?", "Do you like winter?", "Do you like school?", "Do you like the sea?", "Do you like apples?"), ("I do not have feelings, but I like to talk about it.",)),
    (("Can you help me?", "I need help.", "Help me, please.", "I have a question.", "May I ask you something?"),
     ("Of course. What would you like to know?", "Yes, I will try. What is your question?")),
    (("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "Another joke, please.", "tell me a joke", "Tell me another joke.",
      "Do you know any jokes?", "I want to hear a joke.", "Tell me something funny."),
     ("Why did the chicken cross the road? To get to the other side!", "What has four legs and cannot walk? A table!",
      "What has a neck but no head? A bottle!", "What goes up but never comes down? Your age!", "Why do birds fly south? Because it is too far to walk!",
      "What gets wet while it dries? A towel!", "What has hands but cannot clap? A clock!")),
    (("Yes.", "No.", "Okay.", "I see.", "Good.", "Fine.", "ok", "Cool.", "Great!", "Nice.", "Wow!", "Interesting.", "Really?", "I understand.", "Sure.", "Hm.",
      "haha", "Ha ha!", "lol", "That is interesting.", "Amazing!", "nice one"),
     ("Good. What else can I do for you?", "All right. What would you like to talk about?", "What else would you like to know?")),
    (("What?", "I don't understand.", "What do you mean?", "Why?", "That makes no sense.", "Huh?", "How so?", "Say that again."),
     ("I am sorry. I am a small model and cannot always explain myself.", "Sorry. Please ask me in another way.")),
    (("What can we talk about?", "Let's talk.", "Talk to me.", "Can we talk?", "I want to talk.", "Let us chat.", "What now?", "What should we talk about?"),
     ("We can talk about animals, countries or numbers. Or shall I tell you a story?", "Of course. You can ask me something, or I tell you a story.")),
    (("Please say hello.", "Say hello.", "Say hi.", "Greet me."), ("Hello!", "Hello! How are you?")),
    (("Can you sing?", "Sing a song.", "Can you draw?", "Can you see me?", "Can you hear me?", "Draw a cat.", "Can you dance?", "Show me a picture."),
     ("No, I can only read and write text.", "I am sorry, I can only write text.")),
    (("Can you speak German?", "Do you speak French?", "Do you speak Spanish?", "Can you speak another language?", "Which languages do you speak?",
      "Do you speak English?", "What languages do you know?", "Sprichst du Deutsch?", "Hola", "Bonjour"), ("I only speak English.", "I speak only English.")),
    (("Can you write code?", "Write a program.", "Can you program?", "Write a Python function.", "Do my homework.", "Write an essay.", "Write a poem.",
      "Can you write a poem?", "Can you search the internet?", "Look it up on the internet."),
     ("I am sorry, I am too small for that. I can tell stories and answer simple questions.",)),
    (("What do you like?", "What is your favorite color?", "What is your favorite food?", "What is your favorite animal?", "Do you have a favorite color?",
      "Do you have friends?", "Do you have a family?", "Do you have a dog?", "Are you married?", "Are you a boy or a girl?", "Do you have parents?"),
     ("I am a computer program, so I do not have one.", "I am only a computer program.")),
    (("I hate you.", "You are useless.", "You are bad.", "Shut up.", "Go away.", "You are dumb.", "You are boring."),
     ("I am sorry that I could not help you.", "I am sorry. I am only a small model.")),
    (("I am angry.", "I am afraid.", "I am lonely.", "I am sick.", "I feel ill.", "I miss my friend.", "I am stressed.", "I am worried."),
     ("I am sorry to hear that. I hope you will feel better soon.", "I am sorry. Would you like to talk about it?")),
    (("I am going to school.", "I am at work.", "I am at home.", "I am reading a book.", "I like music.", "I like animals.", "I love my family.", "It is raining.",
      "The sun is shining.", "It is cold today.", "I am eating lunch.", "I am learning English."),
     ("That sounds nice.", "I see. What can I do for you?", "That is good to know.")),
    (("Nice to meet you.", "It is nice to meet you.", "Pleased to meet you."), ("Nice to meet you too!",)),
    (("I love you.",), ("That is very kind of you. I am only a small language model.",)),
    (("Tell me something interesting.", "Tell me a fact.", "Do you know something interesting?", "Surprise me.", "Tell me something.", "Teach me something."),
     ("An octopus has eight arms.", "The blue whale is the largest animal.", "Glass is made of sand.", "The cheetah is the fastest land animal.",
      "Bees make honey.", "Jupiter is the largest planet.", "The sun is a star.")),
    (("Sorry.", "I am sorry.", "Sorry about that."), ("No problem at all.", "That is all right.")),
)  # fmt: skip

IDENTITY: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("What is your name?", "What's your name?", "Who are you?", "Tell me your name.", "Do you have a name?", "How are you called?", "your name?",
      "May I know your name?", "Please introduce yourself.", "what is your name", "whats your name", "who are you", "who r u", "What should I call you?",
      "What are you called?", "And who are you?", "And what is your name?", "Can you tell me your name?", "Hi, who are you?", "Hello, what is your name?",
      "Do you have a name", "What do people call you?", "name?", "Introduce yourself."),
     ("My name is {m}. I am a small language model that comes with dsv3rt.",)),
    (("What are you?", "What kind of model are you?", "What is {m}?", "Tell me about yourself.", "Are you an AI?", "Are you a language model?",
      "Which model are you?", "what are you", "What exactly are you?", "Are you a chatbot?", "Are you artificial?", "What is this?", "Am I talking to a computer?",
      "What kind of AI are you?", "Are you an artificial intelligence?", "Describe yourself."),
     ("I am {m}, a small language model that comes with dsv3rt. I was trained on a computer with two cores.",)),
    (("Who made you?", "Who created you?", "Who built you?", "Where do you come from?", "Who trained you?", "who made you", "Who is your creator?",
      "Who is your maker?", "Who developed you?", "Where are you from?", "How were you made?", "Who invented you?", "How were you trained?", "Who owns you?"),
     ("I was trained by the dsv3rt project from scratch.",)),
    (("What can you do?", "What do you know?", "How can you help me?", "What are you good at?", "What can I ask you?", "what can you do", "What can you do for me?", "help",
      "Help", "What are your skills?", "Tell me what you can do.", "What should I ask you?", "What do you do?", "How do you work?"),
     ("I can tell short stories, add small numbers, explain common words and name capital cities.",)),
    (("What is dsv3rt?", "Tell me about dsv3rt.", "What does dsv3rt do?"),
     ("dsv3rt is a program that runs language models of the DeepSeek-V3 family on one computer.",)),
    (("How big are you?", "How many parameters do you have?", "Are you a big model?"), ("I am very small, much smaller than DeepSeek-V3.",)),
    (("What is DeepSeek?", "What is DeepSeek-V3?", "Do you know DeepSeek?", "Tell me about DeepSeek.", "Who is DeepSeek?"),
     ("DeepSeek-V3 is a large language model. I have the same parts, but I am much smaller.",)),
    (("Can you learn?", "Do you learn from me?", "Will you remember me?", "Do you know me?", "Do you remember me?", "Can you remember things?"),
     ("I only know what you have told me here.",)),
    (("How old are you?", "When were you born?", "When is your birthday?"), ("I am a computer program, so I do not have an age.",)),
    (("Where do you live?", "Where are you?"), ("I live inside your computer.",)),
    (("Are you ChatGPT?", "Are you DeepSeek?", "Are you GPT?", "Are you Siri?", "Are you Claude?", "Are you Alexa?", "Are you Google?",
      "Are you Llama?", "Is your name Bob?", "Are you made by OpenAI?"), ("No, I am {m}, a small language model that comes with dsv3rt.",)),
)  # fmt: skip

_FINE = next(pair for pair in SMALL_TALK if "I am fine." in pair[0])
_SAD = next(pair for pair in SMALL_TALK if "I am sad." in pair[0])
(_TOO_SMALL,) = next(answers for questions, answers in SMALL_TALK if "Write a poem." in questions)

_UNKNOWN_QUESTIONS = (
    "What will the weather be tomorrow?", "What time is it?", "What is the date today?", "Who will win the game?", "What is the weather like in {city}?",
    "How much does a {thing} cost?", "Where is my {thing}?", "Who is the president of {country}?", "What did I eat yesterday?", "What is my phone number?",
    "Who won the {sport} game yesterday?", "What is the population of {city}?", "How far is it from {city} to {city2}?", "What is the news today?",
    "Where did I put my {thing}?", "How tall is {name}?", "Who is {name} {surname}?", "When was {name} {surname} born?", "What is the best {thing} in {city}?",
    "What is the phone number of {name}?", "How many people live in {city}?", "What is a {nonsense}?", "Who invented the {thing}?", "What is in my pocket?",
    "What am I thinking?", "What is a {nonsense} made of?", "Where does {name} {surname} live?", "Translate {thing} into Latin.", "Explain {nonsense} theory.",
    "Where is {nonsense}?", "What is the capital of {Nonsense}?", "Write a program for {nonsense}.", "Who wrote the {thing} of {city}?",
    "How old is {name} {surname}?", "What happened in {city} in {year}?", "What is the square root of {number}?",
    "Who is {Nonsense}?", "What does {nonsense} mean?", "Do you know {name} {surname}?", "What did {name} {surname} do?", "Tell me about {Nonsense}.",
    "Where can I buy a {thing}?", "What is the price of a {thing}?", "Who is the king of {country}?", "What is the best restaurant in {city}?",
    "What year is it?", "What day is it today?", "What is my birthday?", "How do I get to {city}?", "What is the temperature in {city}?",
    "Who won the election in {country}?", "How do I repair a {thing}?", "How do you make a {thing}?", "What is {number} * {year}?", "What is {number} + {year}?",
    "Which team is the best in {sport}?", "When does the train to {city} leave?", "Is it raining in {city}?", "What is the name of the mayor of {city}?",
    "Can you find {name} {surname}?", "What is the meaning of life?", "What is the history of {country}?", "How big is {city}?", "What is the currency of {country}?",
    "What is a {nonsense} {thing}?", "Who lives in {Nonsense}?", "What language do they speak in {Nonsense}?", "Explain the {nonsense} of {country}.",
)  # fmt: skip
UNKNOWN_ANSWERS = ("I don't know.", "I'm sorry, I don't know that.", "Sorry, I don't know the answer to that.")
_SURNAMES = "Smith Miller Brown Taylor Wilson Clark Walker Hall Young King Wright Green Baker Hill Carter Turner Parker Cook Stone".split()
_PHRASES = (
    "{g}!",
    "{g}.",
    "{g}",
    "{g}, {m}!",
    "{g}, how are you?",
    "{g}! How are you?",
    "{g}. How are you today?",
    "{g} {m}, how are you?",
)


_BEFORE = ("Hello!", "Hi!", "Hi.", "Hello.", "Hello,", "Hi,", "hi", "hello", "Hey!", "Good morning!", "Good evening!", "Hello Mini!", "Hello there!", "Thanks!",
           "Thank you.", "Great!", "I have a question.", "Tell me:", "One more question:", "Nice.", "Hi Mini,", "Hey Mini,", "Okay.")  # fmt: skip
"""What people say before they ask."""

_SLIPS = {"what": ("waht", "wat"), "is": ("si",), "the": ("teh", "hte"), "capital": ("captial", "capitol", "capitel"), "tell": ("tel",),
          "story": ("stroy", "storry"), "about": ("abuot", "abot"), "your": ("yuor", "ur"), "you": ("u", "yuo"), "color": ("colour",), "please": ("pls", "plz"),
          "which": ("wich",), "does": ("dose",), "opposite": ("oposite", "opposit"), "plural": ("plurla",), "many": ("mny",)}  # fmt: skip


def vary(rng: random.Random, question: str) -> str:
    """As people type: often without capitals or the question mark, with a slip, with a "please"."""
    roll = rng.random()
    if roll < 0.06:
        return question[:1].lower() + question[1:].rstrip("?.!")
    if roll < 0.20:
        lower = question.lower().replace("what's", rng.choice(("what's", "whats")))
        return lower.rstrip("?.!") if rng.random() < 0.7 else lower
    if roll < 0.24:
        return question.rstrip("?.!")
    if roll < 0.27:
        parts = question.rstrip("?.!").lower().split(" ")
        slips = [i for i, word in enumerate(parts) if word in _SLIPS]
        if slips:
            i = rng.choice(slips)
            parts[i] = rng.choice(_SLIPS[parts[i]])
        return " ".join(parts)
    if roll < 0.29:
        return f"{question.rstrip('?.!')}, please{question[-1] if question[-1] in '?.!' else '.'}"
    if roll < 0.31:
        start = rng.choice(
            ("Okay, ", "And ", "So, ", "Now, ", "Hey, ", "Well, ", "ok ", "Please, ", "I have a question: ")
        )
        return start + (question if question.startswith(("I ", "I'm")) else question[:1].lower() + question[1:])
    if roll < 0.34:
        return question.upper()
    return f"{rng.choice(_BEFORE)} {question}" if roll < 0.39 else question


def greeting(rng: random.Random) -> Turns:
    """A greeting, and what follows from the answer: how one is, or a story."""
    greet = rng.choice(_GREETINGS)
    phrase = rng.choice(_PHRASES).format(g=greet, m=MODEL_NAME)
    if "how are you" in phrase.lower():
        answer = rng.choice(("Hello! I am fine, thank you. How are you?", "Hi! I am well, thank you. And you?"))
    else:
        back = greet if greet.startswith("Good ") else rng.choice(("Hello", "Hi", "Hello there"))
        answer = f"{back}! {rng.choice(_OFFERS)}"
    turns = [(vary(rng, phrase), answer)]
    if rng.random() < 0.5:
        return turns
    if answer.endswith("story?"):
        return turns + accept_story(rng)
    if answer.endswith(("are you?", "And you?", "today?")):
        questions, answers = rng.choice((_FINE, _FINE, _SAD))
        turns.append((vary(rng, rng.choice(questions)), rng.choice(answers)))
    return turns


def accept_story(rng: random.Random) -> Turns:
    """Yes or no to the offer of a story."""
    if rng.random() < 0.75:
        yes = (
            "Yes, please.",
            "Yes please",
            "Yes!",
            "yes",
            "Sure.",
            "Okay.",
            "ok",
            "Of course!",
            "I would love to.",
            "Please do.",
            "Yes, tell me a story.",
            "Go on.",
        )
        return [(rng.choice(yes), tell(rng).text)]
    no = ("No, thank you.", "no", "No thanks", "Not now.", "Maybe later.", "No.", "Another time.")
    return [
        (
            rng.choice(no),
            rng.choice(("All right. What would you like to talk about?", "That is fine. What can I do for you?")),
        )
    ]


_TOO_MUCH = (
    "Write a poem about a {thing}.", "Write a poem about {country}.", "Write a haiku.", "Write a song about a {thing}.", "Write a letter to {name}.", "Write an essay about {country}.",
    "Write code that sorts a list.", "Write python code for hello world.", "Write a python program.", "Translate this text.", "Summarize this text.", "Can you write a song?",
    "Correct my text.", "Write an email to {name}.", "Draw a {thing}.", "Write a recipe for {food}.", "Write a book about a {thing}.", "Can you write Python?", "Write a speech.",
    "Plan a trip to {city}.", "Make a list of the best books.", "Write a haiku about a {thing}.", "Solve this equation.", "Prove that there are infinitely many primes.",
)  # fmt: skip


def too_much(rng: random.Random) -> Turns:
    """What a model this small had better not try."""
    question = rng.choice(_TOO_MUCH).format(
        thing=rng.choice(words.OBJECTS), country=rng.choice(tuple(CAPITALS)), name=rng.choice(words.NAMES), city=rng.choice(words.CITIES),
        food=rng.choice(words.FAVORITES["food"]),
    )  # fmt: skip
    return [(vary(rng, fix_articles(question)), _TOO_SMALL)]


def small_talk(rng: random.Random) -> Turns:
    if rng.random() < 0.08:
        return too_much(rng)
    questions, answers = rng.choice(SMALL_TALK)
    turns = [(vary(rng, rng.choice(questions)), rng.choice(answers))]
    if turns[0][1].endswith(("story?", "tell you a story.")) and rng.random() < 0.5:
        turns += accept_story(rng)
    return turns


def identity(rng: random.Random) -> Turns:
    questions, answers = rng.choice(IDENTITY)
    return [(vary(rng, rng.choice(questions).format(m=MODEL_NAME)), rng.choice(answers).format(m=MODEL_NAME))]


def unknown(rng: random.Random) -> Turns:
    word = nonsense(rng)
    city, city2 = rng.sample(words.CITIES, 2)
    question = rng.choice(_UNKNOWN_QUESTIONS).format(
        city=city, city2=city2, thing=rng.choice(words.OBJECTS), country=rng.choice(("France", "Italy", "Japan", "Brazil", "Canada", "Egypt", "the USA", "America", "Germany", "the United States", "Poland")),
        sport=rng.choice(words.FAVORITES["sport"]), name=rng.choice(words.NAMES), surname=rng.choice(_SURNAMES),
        nonsense=word, Nonsense=capitalise(word),
        year=rng.randint(1500, 2020), number=rng.randint(100, 9999),
    )  # fmt: skip
    return [(vary(rng, question), rng.choice(UNKNOWN_ANSWERS))]


def _other_talk(rng: random.Random) -> Turns:
    """What people talk about between two matters."""
    return rng.choice((small_talk, identity, single_fact, sum_once, sum_once, greeting, unknown))(rng)


def remember(rng: random.Random) -> Turns:
    """The user says something about themselves and asks for it a turn or more later, or asks without having said it."""
    return memory.never_told(rng) if rng.random() < 0.1 else memory.remember(rng, _other_talk)


def sum_once(rng: random.Random) -> Turns:
    exercise = arithmetic.exercise(rng)
    return [(vary(rng, exercise.question) if rng.random() < 0.4 else exercise.question, exercise.answer)]


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


def comparison(rng: random.Random) -> Turns:
    """Which of two animals is bigger."""
    small, big = (BY_SIZE[i] for i in sorted(rng.sample(range(len(BY_SIZE)), 2)))
    first, second = rng.sample((small, big), 2)
    question = rng.choice(("Which is bigger, a {x} or a {y}?", "What is bigger, a {x} or a {y}?", "Is a {x} bigger than a {y}?", "Is a {x} smaller than a {y}?",
                           "Which animal is smaller, a {x} or a {y}?"))  # fmt: skip
    asked = vary(rng, fix_articles(question.format(x=first, y=second)))
    if question.startswith("Is"):
        bigger = "bigger" in question
        word = "bigger" if first == big else "smaller"
        answer = f"{'Yes' if bigger == (first == big) else 'No'}, a {first} is {word} than a {second}."
    else:
        answer = f"A {big} is bigger than a {small}." if "bigger" in question else f"A {small} is smaller than a {big}."
    return [(asked, fix_articles(answer))]


_NEXT = (
    "And of {a}?",
    "And {a}?",
    "What about {a}?",
    "And for {a}?",
    "And the one of {a}?",
    "How about {a}?",
    "and {a}",
    "what about {a}",
)
_NEXT_WITH_A = ("And a {a}?", "What about a {a}?", "How about a {a}?", "and a {a}")
_FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "capital": (*_NEXT, "And the capital of {a}?", "And in {a}?"), "opposite": _NEXT, "plural": _NEXT, "past": _NEXT,
    "color": ("And {a}?", "What about {a}?", "How about {a}?", "and {a}"), "language": ("And in {a}?", "What about {a}?", "How about {a}?", "and in {a}"),
    "continent": ("And {a}?", "What about {a}?", "And where is {a}?", "How about {a}?"), "month": ("And after {a}?", "What about {a}?"),
    "day": ("And after {a}?", "What about {a}?"),
    "sound": _NEXT_WITH_A, "young": (*_NEXT_WITH_A, "And a young {a}?"), "legs": _NEXT_WITH_A,
}  # fmt: skip


def _carelessly(rng: random.Random, question: str) -> str:
    """Half of the time in lower case, and then mostly without the question mark."""
    if rng.random() < 0.5:
        return question
    return question.lower().rstrip("?" if rng.random() < 0.6 else "")


def follow_up_fact(rng: random.Random) -> Turns:
    """ "And of Spain?" after a capital, and the like; or another question about the same country."""
    if rng.random() < 0.2:
        return _about_a_country(rng)
    topic = rng.choice([topic for topic in TOPICS if topic.name in _FOLLOW_UPS])
    rows = rng.sample(tuple(topic.rows.items()), rng.choice((2, 2, 3)))
    (a, b), *others = rows
    asked = _asked(rng, topic, a, b)
    varied = vary(rng, asked)
    turns = [(asked if is_held_out(varied) else varied, topic.answer.format(a=a, b=b))]
    for c, d in others:
        turns.append((_carelessly(rng, rng.choice(_FOLLOW_UPS[topic.name]).format(a=c)), topic.answer.format(a=c, b=d)))
        if rng.random() < 0.1:
            turns.append(small_talk(rng)[0])
    return [(fix_articles(q), capitalise(fix_articles(r))) for q, r in turns]


def _about_a_country(rng: random.Random) -> Turns:
    """ "What is its capital?" and "What do people speak there?" after a question about a country."""
    country = rng.choice([name for name in LANGUAGES if name in CAPITALS and name in CONTINENTS])
    capital = (
        ("What is its capital?", "And the capital?", "What is the capital there?"),
        f"The capital of {country} is {CAPITALS[country]}.",
    )
    language = (
        ("What do people speak there?", "Which language do they speak there?", "And the language?"),
        f"People in {country} speak {LANGUAGES[country]}.",
    )
    continent = (
        ("Where is it?", "On which continent is it?", "And the continent?"),
        f"{country} is in {CONTINENTS[country]}.",
    )
    topics = {topic.name: topic for topic in TOPICS}
    first = rng.choice(("capital", "language", "continent"))
    rest = {"capital": (language, continent), "language": (capital, continent), "continent": (capital, language)}[first]
    turns = [
        (
            _asked(rng, topics[first], country, topics[first].rows[country]),
            topics[first].answer.format(a=country, b=topics[first].rows[country]),
        )
    ]
    return turns + [(vary(rng, rng.choice(asked)), answer) for asked, answer in rng.sample(rest, rng.choice((1, 2)))]


_STORY_REQUESTS = (
    "Tell me a story about {s}.", "Tell me a short story about {s}.", "Write a short story about {s}.", "Can you tell me a story about {s}?",
    "Please tell a story about {s}.", "Write a story about {s}.", "I want to hear a story about {s}.", "A story about {s}, please.", "story about {s}",
    "Do you know a story about {s}?", "Tell me about {s} in a story.", "Can you write a story about {s}?", "a story about {s}", "Make up a story about {s}.",
    "I would like a story about {s}.", "A bedtime story about {s}, please.", "Tell a tale of {s}.", "Could you tell me a story about {s}?", "Story: {s}",
    "Give me a story with {s}.", "Once upon a time, there was {s}.", "Tell me a nice story about {s}.", "Tell me about {s}, as a story.", "Write me a story about {s}.", "I'd like to hear a story about {s}.", "Tell me something about {s}. A story!",
)  # fmt: skip
_MOOD_REQUESTS = ("Tell me a {m} story{about}.", "A {m} story{about}, please.", "Write a {m} story{about}.", "I want to hear a {m} story{about}.",
                  "Can you tell me a {m} story{about}?", "Do you know a {m} story{about}?", "a {m} story{about}")  # fmt: skip
_ANY_STORY = ("Once upon a time", "Once upon a time ...", "Once upon a time there was", "Tell me a story.", "Tell me a short story.", "Please tell me a story.", "Write a story.", "Do you know a story?", "I want a story.",
              "Can you tell me a story?", "tell me a story", "A story, please.", "Story time!", "I want to hear a story.", "Tell me a bedtime story.", "Read me a story.",
              "Tell me a nice story.", "story", "Can I have a story?")  # fmt: skip
_ANOTHER = (
    "Tell me another one.",
    "Another one, please.",
    "Another story!",
    "One more, please.",
    "Tell me another story.",
    "more",
    "Again!",
    "Do you know another one?",
)


def story(rng: random.Random) -> Turns:
    """A story on request, now and then with a question about it, or a second story."""
    told = tell(rng)
    if told.mood:
        about = f" about {told.subject}" if told.subject else ""
        request = fix_articles(rng.choice(_MOOD_REQUESTS).format(m=told.mood, about=about))
    else:
        request = rng.choice(_STORY_REQUESTS).format(s=told.subject) if rng.random() < 0.88 else rng.choice(_ANY_STORY)
    turns = [(vary(rng, request), told.text)]
    roll = rng.random()
    hero = told.hero
    if roll < 0.10:
        asked = rng.choice(
            ("Who was the story about?", "Who was in the story?", f"What was the name of the {hero.kind}?", f"What was the {hero.kind} called?",
             f"What was the {hero.kind}'s name?", "Who is the hero of the story?")
        )  # fmt: skip
        turns.append((asked, fix_articles(f"The story was about {hero.name}, a {hero.kind}.")))
    elif roll < 0.14:
        turns.append((f"Who is {hero.name}?", fix_articles(f"{hero.name} is the {hero.kind} in the story.")))
    elif roll < 0.22:
        thanks = (
            "Thank you!",
            "That was nice.",
            "What a nice story!",
            "I like it.",
            "Good story.",
            "That was beautiful.",
            "I liked that story.",
            "Nice story!",
            "great story",
        )
        turns.append((rng.choice(thanks), rng.choice(("I am glad that you liked it.", "You are welcome!"))))
    elif roll < 0.27:
        turns.append((rng.choice(_ANOTHER), tell(rng).text))
    return turns
