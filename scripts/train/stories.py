"""stories - short stories from a grammar: a plot is a list of beats, a beat a choice of sentences, a sentence has slots.

Every random choice comes from the random.Random that is passed in, so a seed is a story. story(rng) returns (title topic, text)."""
import re
from words import *


class Cast:
    """Who a story is about: hero and friend, with the words that stand for them."""

    def __init__(self, rng):
        self.hero, self.he, self.him, self.his, self.intro, self.kind = self.person(rng, None)
        self.friend, self.fhe, self.fhim, self.fhis, self.fintro, self.fkind = self.person(rng, self.hero)

    @staticmethod
    def person(rng, other):
        girl = rng.random() < 0.5
        name = rng.choice([n for n in (GIRLS if girl else BOYS) if n != other])
        he, him, his = ("she", "her", "her") if girl else ("he", "him", "his")
        trait = rng.choice(TRAITS)
        if rng.random() < 0.55:
            kind = rng.choice(ANIMALS)[0]
        else:
            kind = "girl" if girl else "boy"
        return name, he, him, his, f"{a(trait)} {kind} named {name}", kind


def a(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def fill(rng, template, slots, sentence=True):
    """{x} takes slot x; [p|q|r] takes one of p, q, r; sentences get their capital letters, also behind an opening quote."""
    while True:
        m = re.search(r"\[([^\[\]]*)\]", template)
        if not m:
            break
        template = template[:m.start()] + rng.choice(m.group(1).split("|")) + template[m.end():]
    text = re.sub(r"\{(\w+)\}", lambda m: str(slots[m.group(1)]), template)
    if sentence:
        text = re.sub(r"(^|[.!?] +)(\"?[a-z])", lambda m: m.group(1) + m.group(2).upper(), text)
    return re.sub(r" +", " ", text).strip()


def tell(rng, beats, slots):
    return [fill(rng, rng.choice(b), slots) for b in beats if b]


OPENINGS = ["once upon a time, there was {intro}.", "once there was {intro}.", "there once lived {intro}.", "one day, {intro} woke up early.",
            "in {a_place} lived {intro}.", "long ago, {intro} lived near {a_place}.", "{intro} lived in a small house near the {place}.",
            "this is a story about {intro}.", "once upon a time, {intro} lived with {his} family near the {place}."]
LIKES = ["{hero} [loved|liked] to {hobby}.", "every day {he} went to the {place} to {hobby}.", "{hero} liked {hobbying}, {hobby_more}.", "{he} was always {hobbying}.",
         "nobody liked {hobbying} more than {hero}.", "", "more than anything, {hero} loved {hobbying}."]
MORNINGS = ["one {weather} [morning|day|afternoon], {hero} went [out to|to] the {place}. {weather_more}", "it was a {weather} day in {season}. {weather_more}",
            "one day in {season}, {hero} was {at} the {place}. {weather_more}", "on a {weather} morning, {hero} put on {his} {colour} coat and walked to the {place}."]
ENDINGS = ["from that day on, {hero} and {friend} were the best of friends.", "{hero} and {friend} went home [happy|tired but happy|with a smile].", "that night, {hero} fell asleep with a smile.",
           "and so the day ended well for everyone.", "they laughed all the way home.", "{hero} told {his} {relative} everything, and {rhe} was very proud.",
           "after that, they met {at} the {place} every day.", "and {hero} never forgot that day."]
MEET = ["then {he} met {fintro}.", "just then, {fintro} came along.", "on the way, {he} saw {fintro}.", "{fintro} heard {him} and came closer.", "behind a tree stood {fintro}."]
FRIEND_ASKS = ["\"What is wrong?\" asked {friend}.", "\"Why do you look so {sad}?\" asked {friend}.", "\"Can I help you?\" said {friend}.", "\"Hello, {hero},\" said {friend}. \"What are you doing?\""]
THANKS = ["\"Thank you, {friend}!\" said {hero}.", "\"Thank you so much,\" {hero} said, and gave {friend} a big hug.", "{hero} thanked {friend} again and again.", "\"I could not have done it without you,\" said {hero}."]
JOY = ["{hero} was so {glad} that {he} [jumped|danced|laughed out loud].", "{hero} felt very {glad}.", "how {glad} {hero} was!", "they were both very {glad}."]

PLOTS = {
    "lost": [
        ["{hero} had {a_colour} {toy} that {he} loved very much.", "{his} best thing in the world was {a_colour} {toy}.", "{his} {relative} had given {him} {a_colour} {toy}."],
        MORNINGS,
        ["but when {he} wanted to play, the {toy} was gone.", "suddenly {he} saw that the {toy} was not there.", "then {he} could not find the {toy} anywhere.", "but the {toy} was lost!"],
        ["{he} looked {hiding}, but it was not there.", "{hero} looked {hiding}. No {toy}. {he} looked {hiding2}. No {toy}.", "first {he} looked {hiding}, then {hiding2}, but {he} found only dust."],
        ["{hero} was very {sad} and began to cry.", "{hero} sat down and felt {sad}.", "tears came to {his} eyes."],
        MEET, FRIEND_ASKS,
        ["\"I have lost my {toy},\" said {hero}.", "\"My {colour} {toy} is gone,\" {hero} answered.", "\"I cannot find my {toy} anywhere,\" {hero} said."],
        ["\"Let us look for it together,\" said {friend}.", "\"Two can see more than one,\" said {friend}. \"Let us look together.\"", "\"Do not be {sad},\" said {friend}. \"I will help you.\""],
        ["they looked and looked. At last {friend} saw something {colour} {hiding3}.", "{friend} looked {hiding3} and called, \"Here it is!\"", "after a long time, they found the {toy} {hiding3}."],
        THANKS, JOY],
    "help": [
        LIKES, MORNINGS,
        ["there {he} heard a small voice. \"Help! Help!\"", "suddenly {he} heard somebody cry.", "then {he} heard a strange sound [behind a bush|from a tree|near the water]."],
        ["it was {fintro}. {fhe} was stuck {hiding}.", "{he} saw {fintro}, who could not get out of a hole.", "there sat {fintro} with a hurt leg."],
        ["\"I will help you,\" said {hero}.", "\"Do not be afraid,\" said {hero}. \"I am here.\"", "\"Wait, I am coming,\" called {hero}."],
        ["{hero} took a long [stick|rope|branch] and pulled with all {his} strength.", "{hero} ran home and came back with {his} {relative}.", "{hero} thought for a moment. Then {he} had an idea."],
        ["slowly, {friend} came free.", "soon {friend} was safe.", "it was hard work, but at last {friend} could stand up again."],
        ["\"Thank you, {hero},\" said {friend}. \"You are very kind.\"", "{friend} smiled. \"You saved me, {hero}!\"", "\"How can I thank you?\" asked {friend}. \"Be my friend,\" said {hero}."],
        ["they shared {a_food} and talked until the sun went down.", "{friend} gave {hero} {a_food} to say thank you.", "then they sat down together and ate {a_food}."]],
    "make": [
        ["{hero} wanted to make a {thing} for {his} {relative}.", "one day {hero} said, \"I will make a {thing}!\"", "it was the birthday of {his} {relative}, and {hero} wanted to give {rhim} a {thing}."],
        ["{he} needed {m0}, {m1}, {m2} and {m3}.", "first {he} looked for {m0} and {m1}. Then {he} found {m2} and {m3}.", "{he} put {m0}, {m1} and {m2} on the table."],
        ["{hero} worked all morning, but the {thing} [fell apart|looked strange|was too small|broke in the middle].", "the first {thing} was not good at all.", "but something went wrong, and the {thing} [fell to the floor|broke]."],
        ["{hero} was {sad}. \"I cannot do it,\" {he} said.", "\"It is no use,\" said {hero}.", "{he} wanted to give up."],
        MEET,
        ["\"Let me help you,\" said {friend}. \"We forgot {m3}.\"", "\"You only need more {m0},\" said {friend}.", "\"Try again,\" said {friend}. \"I will hold it for you.\""],
        ["together they tried again, slowly and carefully.", "they began again, and this time they took their time.", "so they worked together, and {hero} sang a song."],
        ["when it was done, it was the best {thing} in the whole {place}.", "at last the {thing} was ready, and it was beautiful.", "this time the {thing} was just right."],
        ["{his} {relative} smiled. \"What a lovely {thing}!\" {rhe} said.", "\"Did you make this {thing} for me?\" asked {his} {relative}. {hero} nodded.", "{his} {relative} was so happy that {rhe} hugged them both."], THANKS],
    "share": [
        ["{hero} got a new {toy} from {his} {relative}. It was {colour} and shiny.", "{hero} had a new {colour} {toy}.", "for {his} birthday, {hero} got {a_colour} {toy}."],
        MORNINGS, MEET,
        ["\"May I play with your {toy}?\" asked {friend}.", "\"What a nice {toy}! Can I try it?\" asked {friend}.", "{friend} looked at the {toy} and wanted to play with it, too."],
        ["\"No, it is mine!\" said {hero}.", "{hero} held the {toy} tight. \"No,\" {he} said.", "but {hero} shook {his} head. \"It is my {toy},\" {he} said."],
        ["{friend} was {sad} and walked away.", "{friend} said nothing and sat down alone.", "{friend} looked at the ground."],
        ["{hero} played alone, but it was not much fun.", "soon {hero} was bored. The {toy} was no fun without a friend.", "{hero} looked at {friend} and felt bad."],
        ["\"I am sorry,\" said {hero}. \"Let us play together.\"", "{he} went to {friend} and said, \"You can have the {toy} first.\"", "\"Come,\" said {hero}. \"We can take turns.\""],
        ["{friend} smiled, and they played until dinner.", "they took turns and laughed a lot.", "now the game was much better."], JOY],
    "fear": [
        ["{hero} was afraid of {fear}.", "there was one thing that {hero} did not like: {fear}.", "{hero} was brave, but {he} was afraid of {fear}."],
        ["one day it was time for {fear_time}.", "then came {fear_time}.", "{hero} thought of {fear_time} and could not eat."],
        ["{his} heart beat fast.", "{he} wanted to run away.", "{he} held {his} breath and closed {his} eyes.", "{hero} hid {hiding}."],
        MEET, FRIEND_ASKS,
        ["\"I am afraid of {fear},\" {hero} said softly.", "\"I am so afraid,\" said {hero}.", "{hero} told {friend} about it."],
        ["\"I was afraid, too,\" said {friend}. \"Take {fear_help} with you.\"", "\"I know what helps,\" said {friend}. \"{fear_help}.\"", "{friend} gave {him} {fear_help}. \"This will help you,\" {fhe} said."],
        ["{hero} took one small step, and then another.", "{hero} took {his} friend's hand and opened {his} eyes.", "slowly, {hero} tried it."],
        ["and what did {he} find? {fear_truth}.", "then {he} saw that {fear_truth}.", "and {hero} saw that it was not so bad: {fear_truth}."],
        ["\"I did it!\" called {hero}.", "\"I am not afraid any more,\" said {hero}.", "{hero} laughed. \"Was that all?\" {he} said."], JOY],
    "trip": [
        ["one day {hero} found an old map {hiding}.", "{his} {relative} gave {him} an old map.", "in an old book, {hero} found a map with a red cross."],
        ["the map showed a way to the {place2}.", "the red cross was near the {place2}.", "it showed a path from the {place} to the {place2}."],
        ["{hero} packed {a_food} and a [lamp|rope|bottle of water] and set off.", "{hero} put {a_food} in {his} bag and went.", "\"I want to see what is there,\" {he} said, and went off."], MEET,
        ["\"May I come with you?\" asked {friend}. \"Of course,\" said {hero}.", "\"Where are you going?\" asked {friend}. \"To the {place2},\" said {hero}. \"Come with me!\"", "{friend} wanted to come, too."],
        ["they walked over a bridge and through a dark wood.", "they walked past the {place} and up a steep hill.", "the way was long, but they sang songs and told jokes."],
        ["there they dug in the ground until they found a [box|chest|pot].", "near the {place2} stood a big stone, and behind it was a [box|chest].", "at the red cross they found a small [box|chest|pot]."],
        ["in it lay {a_colour} {toy} and a letter. \"For the one who is brave,\" it said.", "it was full of [old coins|shiny stones|letters and shells].", "inside was a note: \"The best treasure is a good friend.\""], JOY],
    "grow": [
        ["{his} {relative} gave {hero} a small seed.", "{hero} found a tiny seed {hiding}.", "at the market, {hero} bought a seed for one coin."],
        ["\"It is a {plant} seed,\" said {his} {relative}. \"Give it water every day.\"", "\"If you care for it, it will be a {plant},\" said {his} {relative}.", "{he} put the {plant} seed into the ground and gave it water."],
        ["the next morning {hero} looked, but there was nothing to see.", "{hero} waited one day, two days, three days. Nothing happened.", "every day {he} looked, and every day there was only earth."],
        ["\"Why does it not grow?\" asked {hero}.", "{hero} was {sad}. \"It will never grow,\" {he} said.", "\"I do not want to wait,\" said {hero}."], MEET,
        ["\"Wait a little longer,\" said {friend}. \"Seeds need time.\"", "\"It is sleeping,\" said {friend}. \"It needs sun and water.\"", "{friend} said, \"Let us water it together.\""],
        ["so they gave it water and sang to it.", "every morning they came with a can of water.", "the sun was warm, and a soft rain fell."],
        ["then, one morning, there was a small green leaf.", "and one day, a tiny green tip came out of the earth.", "at last something green looked out of the ground."],
        ["it grew and grew, until there was a {fruit}.", "in {season} it had its first {fruit}.", "weeks later, {hero} saw a {fruit}."], JOY],
    "race": [
        ["every year there was a big race {at} the {place}.", "one day there was a race {at} the {place}, and the prize was {a_food}.", "\"Who is the fastest?\" the animals asked. So they made a race."],
        ["{hero} wanted to win.", "{hero} trained every day.", "\"I will be first,\" said {hero}."], ["{fintro} ran, too.", "next to {him} stood {fintro}.", "but {fintro} was very fast."],
        ["\"Ready, steady, go!\" called the owl, and off they ran.", "when the bell rang, they all began to run.", "they ran over the grass and around the pond."],
        ["{hero} was in front, but then {he} heard a cry. {friend} had fallen.", "near the end, {friend} fell over a stone.", "suddenly {friend} stopped. {fhis} foot was hurt."],
        ["{hero} looked at the finish, and then {he} looked at {friend}.", "{hero} stopped at once.", "what should {hero} do?"],
        ["{he} went back and helped {friend} up.", "\"Come, lean on me,\" said {hero}.", "\"Take my hand,\" {hero} said."],
        ["they crossed the line together, last of all, but everyone clapped.", "together they walked to the end, and all the others cheered.", "another won the race, but the loudest clapping was for {hero} and {friend}."], JOY],
    "truth": [
        ["{his} {relative} had a beautiful {colour} vase.", "on the shelf stood {a_colour} cup that belonged to {his} {relative}.", "{his} {relative} loved the {colour} plate on the wall."],
        ["one day {hero} played with {a_colour2} {toy} in the house.", "{hero} was {hobbying} in the living room, though it was not allowed.", "one {weather} day, {hero} ran through the house."],
        ["crash! It fell down and broke.", "bump! It fell to the floor and broke into many pieces.", "there was a loud crash, and it was broken."],
        ["{hero} hid the pieces {hiding}.", "\"Oh no,\" said {hero}, and {his} heart beat fast.", "{hero} did not know what to do."], MEET,
        ["\"You should tell the truth,\" said {friend}.", "\"Say that you are sorry,\" said {friend}. \"That is the best way.\"", "{friend} said, \"I will go with you.\""],
        ["so {hero} went to {his} {relative} and told {rhim} everything.", "\"I broke it,\" {hero} said. \"I am sorry.\"", "with a small voice, {hero} said, \"It was me.\""],
        ["{his} {relative} was quiet for a moment. Then {rhe} smiled.", "\"Thank you for telling me,\" said {his} {relative}.", "\"I am not angry,\" said {his} {relative}. \"It was brave to tell me.\""],
        ["together they mended it with glue.", "they picked up the pieces, and it was not so bad.", "{hero} helped to clean the floor, and then they had {a_food} together."]],
    "rain": [
        ["{hero} and {friend} wanted to have a picnic {at} the {place}.", "all week {hero} had looked forward to a day {at} the {place} with {fintro}.", "{hero} had packed {a_food} for a picnic with {friend}."],
        ["but when they came out, it began to rain.", "then dark clouds came, and big drops fell.", "just as they sat down, the rain began."],
        ["\"Now everything is spoiled,\" said {hero}.", "{hero} was {sad}.", "\"Oh no, our food will get wet!\" called {friend}."],
        ["\"Look,\" said {friend}, \"we can go into the [barn|tent|old hut].\"", "then {friend} had an idea. \"Let us have the picnic at home!\"", "they ran as fast as they could to the [barn|hut|house]."],
        ["there they put a blanket on the floor and lit a lamp.", "they built a tent from a sheet and two chairs.", "they sat in the hay and listened to the rain."],
        ["they ate {a_food} and told each other stories about [pirates|dragons|far lands].", "{friend} played a song, and {hero} danced.", "they played games and forgot the rain."],
        ["when they looked out again, there was a rainbow over the {place}.", "later, the sun came out, and they jumped into the puddles.", "in the evening, the sky was clear and full of stars."], JOY],
}


def slots_of(rng, cast):
    place, place2 = rng.sample(PLACES, 2)
    weather, hobby, make, fear, plant = (rng.choice(x) for x in (WEATHER, HOBBIES, MAKE, FEARS, PLANTS))
    relative, rhe, rhis = rng.choice(RELATIVES)
    hiding, hiding2, hiding3 = rng.sample(HIDING, 3)
    colour, colour2 = rng.sample(COLOURS, 2)
    truth = fear[3].replace("carry her", "carry " + cast.him)
    return dict(hero=cast.hero, he=cast.he, him=cast.him, his=cast.his, intro=cast.intro, friend=cast.friend, fhe=cast.fhe, fhim=cast.fhim, fhis=cast.fhis,
                fintro=cast.fintro, place=place[0], at=place[1], a_place=a(place[0]), place2=place2[0], weather=weather[0], weather_more=weather[1], season=rng.choice(SEASONS),
                hobby=hobby[0], hobbying=hobby[1], hobby_more=hobby[2], thing=make[0], m0=make[1][0], m1=make[1][1], m2=make[1][2], m3=make[1][3],
                fear=fear[0], fear_time=fear[1], fear_help=fear[2], fear_truth=truth, plant=plant[0], fruit=plant[1], relative=relative, rhe=rhe, rhim="him" if rhe == "he" else "her",
                rhis=rhis, hiding=hiding, hiding2=hiding2, hiding3=hiding3, colour=colour, colour2=colour2, a_colour=a(colour), a_colour2=a(colour2), toy=rng.choice(TOYS),
                a_food=a(rng.choice(FOODS)), glad=rng.choice(FEELINGS), sad=rng.choice(SADNESS))


TOPICS = {"lost": "who lost {a_colour} {toy}", "help": "who helped {friend}", "make": "who made a {thing}", "share": "who learned to share {his} {toy}", "fear": "who was afraid of {fear}",
          "trip": "who found a map", "grow": "who planted a {plant}", "race": "who ran in a race", "truth": "who told the truth", "rain": "and a rainy picnic"}


def story(rng):
    """(topic, text): the topic completes the words `a story about'."""
    plot = rng.choice(sorted(PLOTS))
    cast = Cast(rng)
    slots = slots_of(rng, cast)
    likes = rng.choice([LIKES, [""]]) if plot != "help" else None
    parts = tell(rng, [OPENINGS, likes] + PLOTS[plot] + [ENDINGS], slots)
    if rng.random() < 0.4:
        parts.append(rng.choice(LESSONS[plot]))
    parts = [p for p in parts if p]
    text, line = [], []
    for i, p in enumerate(parts):
        line.append(p)
        if len(line) >= 4 and rng.random() < 0.4:
            text.append(" ".join(line))
            line = []
    if line:
        text.append(" ".join(line))
    topic = f"{a(cast.kind)} named {cast.hero} " + fill(rng, TOPICS[plot], slots, sentence=False) if rng.random() < 0.6 else f"{a(cast.kind)} " + fill(rng, TOPICS[plot], slots, sentence=False)
    return topic, "\n".join(text)


if __name__ == "__main__":
    import random
    import sys
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for _ in range(3):
        print("[%s]\n%s\n" % story(rng))
