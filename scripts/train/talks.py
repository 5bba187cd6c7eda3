"""talks - what the model is asked in a chat: facts, arithmetic, JSON, small talk. Every kind has phrasings that only the held-out questions use.

Random choices come from the random.Random passed in. turns(rng, held_out) returns [(question, answer)...]."""
import json

import stories
from words import *

CAPITALS = """France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Austria Vienna, Poland Warsaw, Norway Oslo, Sweden Stockholm, Denmark Copenhagen,
Finland Helsinki, Greece Athens, Hungary Budapest, Ireland Dublin, Iceland Reykjavik, Japan Tokyo, China Beijing, India Delhi, Egypt Cairo, Kenya Nairobi, Canada Ottawa,
Peru Lima, Chile Santiago, Cuba Havana, Turkey Ankara, Russia Moscow, Belgium Brussels, Switzerland Bern, Romania Bucharest, Bulgaria Sofia"""
CAPITALS = [tuple(x.split()) for x in CAPITALS.replace("\n", " ").split(", ")]
SOUNDS = [("dog", "barks"), ("cat", "meows"), ("cow", "moos"), ("sheep", "bleats"), ("duck", "quacks"), ("horse", "neighs"), ("lion", "roars"), ("bee", "buzzes"), ("frog", "croaks"),
          ("owl", "hoots"), ("pig", "grunts"), ("wolf", "howls"), ("snake", "hisses"), ("mouse", "squeaks"), ("rooster", "crows"), ("bird", "sings")]
LEGS = [("dog", "four"), ("cat", "four"), ("horse", "four"), ("cow", "four"), ("duck", "two"), ("bird", "two"), ("person", "two"), ("spider", "eight"), ("ant", "six"), ("bee", "six"), ("beetle", "six"),
        ("frog", "four"), ("snake", "no"), ("fish", "no"), ("mouse", "four"), ("lion", "four"), ("elephant", "four"), ("butterfly", "six")]
YOUNG = [("dog", "puppy"), ("cat", "kitten"), ("cow", "calf"), ("sheep", "lamb"), ("horse", "foal"), ("duck", "duckling"), ("bear", "cub"), ("lion", "cub"), ("pig", "piglet"), ("goat", "kid"), ("frog", "tadpole"),
         ("hen", "chick")]
THING_COLOURS = [("sky", "blue"), ("grass", "green"), ("sun", "yellow"), ("snow", "white"), ("coal", "black"), ("banana", "yellow"), ("tomato", "red"), ("carrot", "orange"), ("milk", "white"), ("night", "black"),
                 ("frog", "green"), ("lemon", "yellow"), ("strawberry", "red"), ("leaf", "green"), ("elephant", "grey"), ("pumpkin", "orange")]
OPPOSITES = """big small, hot cold, day night, up down, happy sad, fast slow, old young, light dark, open closed, wet dry, full empty, hard soft, loud quiet, early late, near far, strong weak, high low, long short, clean dirty,
rich poor, good bad, left right, first last, sweet sour, thick thin, black white""".replace("\n", " ").split(", ")
OPPOSITES = [tuple(x.split()) for x in OPPOSITES]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
USES = [("umbrella", "it keeps you dry in the rain"), ("lamp", "it gives light"), ("clock", "it shows the time"), ("oven", "it bakes bread and cakes"), ("bed", "you sleep in it"), ("boat", "it carries you over the water"), ("hammer", "it drives nails"),
        ("key", "it opens a door"), ("spoon", "you eat soup with it"), ("broom", "you sweep the floor with it"), ("pen", "you write with it"), ("scissors", "they cut paper"), ("book", "you read it"), ("map", "it shows the way"),
        ("bell", "it rings"), ("bridge", "it leads over a river"), ("candle", "it gives light"), ("soap", "it makes your hands clean")]
ABOUT = [("Who are you?|What are you?|Tell me who you are.|Who am I talking to?|And who are you?", "I am a very small language model that came with shimmyd."),
         ("What can you do?|What are you good at?|How can you help me?|What do you know?|Tell me what you can do.", "I can tell short stories, answer simple questions and add small numbers."),
         ("How big are you?|How many parameters do you have?|Are you a big model?|Are you large?|How large are you?", "I am tiny: I have less than six million parameters."),
         ("Who made you?|Where do you come from?|Who trained you?|How were you made?|Where were you trained?", "I was trained by a script of shimmyd on a computer without a graphics card."),
         ("Can you make mistakes?|Are you always right?|Can I trust you?|Do you know everything?|Are you ever wrong?", "I am small and I make many mistakes, so do not trust me with anything important.")]


def number(rng, n):
    return str(n) if rng.random() < 0.7 else NUMBERS[n]


def an(word):
    return stories.a(word)


# (name, number of facts, question phrasings, held-out phrasings, fact -> slots, answer forms). The last ones are never seen in training.
def facts():
    cap = lambda f: dict(x=f[0], y=f[1])
    the = lambda f: dict(x=f[0], ax=an(f[0]), y=f[1], Y=f[1])
    yield ("capital", CAPITALS, cap,
           ["What is the capital of {x}?", "Which city is the capital of {x}?", "Tell me the capital of {x}.", "capital of {x}?", "Name the capital of {x}.", "Do you know the capital of {x}?", "What is the capital city of {x}?",
            "I want to know the capital of {x}.", "Please tell me the capital of {x}.", "{x}: what is its capital?", "Which city is the seat of the government of {x}?", "What city is the capital of {x}?"],
           ["Can you tell me the capital of {x}?", "The capital of {x} is which city?", "What is {x}'s capital?", "Say the name of the capital of {x}."], ["The capital of {x} is {y}."])
    yield ("sound", SOUNDS, the,
           ["What sound does {ax} make?", "How does {ax} sound?", "What does {ax} do when it makes a sound?", "Which sound does {ax} make?", "Tell me what sound {ax} makes.", "What noise does {ax} make?", "What is the sound of {ax}?",
            "Which noise does {ax} make?", "Do you know what sound {ax} makes?"],
           ["Can you tell me what sound {ax} makes?", "What kind of sound does {ax} make?", "The sound of {ax}, what is it?"], ["{Ax} {y}."])
    yield ("legs", LEGS, the,
           ["How many legs does {ax} have?", "How many legs has {ax}?", "Tell me how many legs {ax} has.", "What number of legs does {ax} have?", "Count the legs of {ax}.", "Do you know how many legs {ax} has?", "{Ax} has how many legs?",
            "Legs of {ax}: how many?", "How many legs are there on {ax}?"],
           ["Can you tell me how many legs {ax} has?", "How many legs do you count on {ax}?", "Please say how many legs {ax} has."], ["{Ax} has {y} legs."])
    yield ("young", YOUNG, the,
           ["What is a young {x} called?", "What do you call a baby {x}?", "What is the name for a young {x}?", "How do we call the baby of {ax}?", "A baby {x} is called what?", "Tell me the word for a young {x}.", "Which word means a young {x}?",
            "What is a baby {x}?", "Do you know what a young {x} is called?"],
           ["Can you tell me what a young {x} is called?", "What is a baby {x} called?", "What do we call a young {x}?"], ["A young {x} is called {ay}."])
    yield ("colour", THING_COLOURS, the,
           ["What colour is the {x}?", "Which colour is the {x}?", "Tell me the colour of the {x}.", "What is the colour of the {x}?", "Which colour does the {x} have?", "Do you know the colour of the {x}?", "What colour does the {x} have?",
            "The {x} has which colour?", "Name the colour of the {x}.", "What colour has the {x}?"],
           ["Can you tell me the colour of the {x}?", "Say what colour the {x} is.", "What colour would you paint the {x}?"], ["The {x} is {y}."])
    both = [p for a_, b_ in OPPOSITES for p in ((a_, b_), (b_, a_))]
    yield ("opposite", both, cap,
           ["What is the opposite of {x}?", "Which word is the opposite of {x}?", "Tell me the opposite of {x}.", "opposite of {x}?", "Name the opposite of {x}.", "Do you know the opposite of {x}?", "What word means the opposite of {x}?",
            "{x}: what is the opposite?", "What is not {x}, but the opposite?"],
           ["Can you tell me the opposite of {x}?", "The opposite of {x} is what?", "Give me the opposite of {x}."], ["The opposite of {x} is {y}."])
    order = [(d, DAYS[(i + 1) % 7]) for i, d in enumerate(DAYS)] + [(m, MONTHS[(i + 1) % 12]) for i, m in enumerate(MONTHS)]
    yield ("after", order, cap,
           ["What comes after {x}?", "What follows {x}?", "Which one comes after {x}?", "What is next after {x}?", "Tell me what comes after {x}.", "After {x} comes what?", "If it is {x} now, what comes next?", "Do you know what comes after {x}?"],
           ["Can you tell me what comes after {x}?", "What comes next after {x}?", "What do we have after {x}?"], ["After {x} comes {y}."])
    before = [(y, x) for x, y in order]
    yield ("before", before, cap,
           ["What comes before {x}?", "What is before {x}?", "Which one comes before {x}?", "Tell me what comes before {x}.", "What came before {x}?", "Before {x} comes what?", "Do you know what comes before {x}?"],
           ["Can you tell me what comes before {x}?", "What comes right before {x}?", "What do we have before {x}?"], ["Before {x} comes {y}."])
    yield ("use", USES, the,
           ["What is {ax} for?", "What do you do with {ax}?", "Why do people have {ax}?", "What is the use of {ax}?", "Tell me what {ax} is for.", "What is {ax} good for?", "Do you know what {ax} is for?", "What can {ax} do?"],
           ["Can you tell me what {ax} is for?", "What do people use {ax} for?", "What use does {ax} have?"], ["{Y}."])


def capital_letter(text):
    return text[:1].upper() + text[1:]


def slots_of(fact, slots):
    s = slots(fact)
    s.setdefault("ax", an(s["x"]))
    s["Ax"] = capital_letter(s["ax"])
    s["ay"] = an(s["y"])
    s["Y"] = capital_letter(s["y"])
    return s


FACTS = list(facts())
EVERY_FACT = [(kind, f) for kind in FACTS for f in kind[1]]


def ask(rng, text):
    """People do not always write a capital letter or a question mark."""
    r = rng.random()
    if r < 0.7:
        return capital_letter(text)
    if r < 0.85:
        return text[:1].lower() + text[1:]
    return capital_letter(text.rstrip("?."))


def fact(rng, held_out=False, evenly=False):
    """Evenly: every fact is as likely as any other; else every kind of fact is."""
    if evenly:
        (name, known, slots, seen, unseen, answers), which = rng.choice(EVERY_FACT)
    else:
        name, known, slots, seen, unseen, answers = rng.choice(FACTS)
        which = rng.choice(known)
    s = slots_of(which, slots)
    question = rng.choice(unseen if held_out else seen).format(**s)
    return (capital_letter(question) if held_out else ask(rng, question)), capital_letter(rng.choice(answers).format(**s))


def held_out_facts():
    """Every fact in every phrasing that training never shows: (kind, question, answer, the word that decides)."""
    for name, known, slots, seen, unseen, answers in FACTS:
        for f in known:
            s = slots_of(f, slots)
            for phrasing in unseen:
                yield name, capital_letter(phrasing.format(**s)), capital_letter(answers[0].format(**s)), s["y"]


def arithmetic(rng, held_out=False):
    plus = rng.random() < 0.6
    c = rng.randint(0, 20)
    a_ = rng.randint(0, c)
    if plus:
        x, y, z, sign, word = a_, c - a_, c, "+", "plus"
    else:
        x, y, z, sign, word = c, a_, c - a_, "-", "minus"
    form = rng.choice(["Can you tell me what {x} {w} {y} is?", "Work out {x} {w} {y}."] if held_out else
                      ["What is {x} {s} {y}?", "{x} {s} {y} =", "How much is {x} {w} {y}?", "What is {x} {w} {y}?", "Calculate {x} {s} {y}.", "{x} {w} {y}?", "Tell me {x} {w} {y}.", "How much is {x} {s} {y}?"])
    answer = rng.choice(["{x} {s} {y} = {z}."])
    v = dict(x=x, y=y, z=z, s=sign, w=word)
    return form.format(**v), answer.format(**v)


def record(rng):
    name = rng.choice(GIRLS + BOYS)
    return {k: v for k, v in (("name", name), ("age", rng.randint(3, 20)), ("animal", rng.choice(ANIMALS)[0]), ("colour", rng.choice(COLOURS)), ("city", rng.choice(CAPITALS)[1]), ("toy", rng.choice(TOYS)),
                              ("happy", rng.random() < 0.5)) if k == "name" or rng.random() < 0.45}


def as_json(rng, held_out=False):
    r = record(rng)
    words = {"name": "The name is {}", "age": "the age is {}", "animal": "the animal is a {}", "colour": "the colour is {}", "city": "the city is {}", "toy": "the toy is a {}"}
    text = ", ".join((words[k].format(v) if k in words else ("the person is happy" if v else "the person is not happy")) for k, v in r.items())
    form = rng.choice(["Answer as JSON. {}."] if held_out else ["Write as JSON: {}.", "Make JSON of this: {}.", "As JSON, please: {}.", "Turn this into JSON. {}.", "JSON: {}."])
    return form.format(text), json.dumps(r)


def small_talk(rng, held_out=False):
    name = rng.choice(GIRLS + BOYS)
    pairs = [("Hello!|Hi!|Good morning!|Hello there.|Hi there!|Hey!|Good evening!", ["Hello! How can I help you?", "Hi! What would you like to know?"]),
             ("Thank you!|Thanks!|Thanks a lot.|That was nice, thank you.|Great, thanks!", ["You are welcome!", "I am glad that I could help."]),
             ("Goodbye!|Bye!|See you.|Good night!|Bye bye!", ["Goodbye! Have a nice day.", "See you soon!"]),
             ("How are you?|How do you do?|Are you well?|How are you today?", ["I am fine, thank you. How are you?"]),
             (f"My name is {name}.|I am {name}.|Hello, I am {name}.|Hi, my name is {name}.", [f"Hello, {name}! Nice to meet you."])] + [(q, [x]) for q, x in ABOUT]
    questions, answers = rng.choice(pairs)
    questions = questions.split("|")
    return (questions[-1] if held_out else rng.choice(questions[:-1])), rng.choice(answers)


def told(rng, held_out=False):
    topic, text = stories.story(rng)
    form = rng.choice(["Please tell a story about {}."] if held_out else
                      ["Tell me a story about {}.", "Write a short story about {}.", "I would like to hear a story about {}.", "Can you tell me a story about {}?", "A story about {}, please.", "Tell a story about {}."])
    return form.format(topic), text


def evenly(rng, held_out=False):
    return fact(rng, held_out, True)


def turns(rng, held_out=False, even=False):
    """One conversation: mostly one or two questions, of all kinds."""
    kinds = [evenly] * 12 + [arithmetic] * 4 + [as_json] * 2 + [small_talk] * 3 + [told] * 2 if even else [fact] * 12 + [arithmetic] * 4 + [as_json] * 2 + [small_talk] * 3 + [told] * 2
    n = rng.choice([1, 1, 2, 2, 3, 4])
    return [rng.choice(kinds)(rng, held_out) for _ in range(n)]


if __name__ == "__main__":
    import random
    import sys
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for _ in range(12):
        for q, x in turns(rng):
            print("Q:", q, "\nA:", x)
    print(sum(1 for _ in held_out_facts()), "held-out questions")
