"""words - the vocabulary of the stories: who, where, what. Lists only; stories.py says what is done with them."""

GIRLS = """Anna Bella Clara Daisy Ella Emma Freya Grace Hana Ida Ivy Jane Kate Lena Lily Lucy Maya Mia Mina Nora Nina Olive
Rosa Ruby Sara Sofia Tara Tess Una Vera Wren Zoe""".split()
BOYS = """Adam Alex Ben Carl Dan Eli Felix Finn Gus Hugo Ian Jack Jonas Karl Leo Liam Max Milo Nico Noah Omar Oscar Otto
Paul Peter Ravi Sam Theo Tim Tom Will Yusuf""".split()
# (kind, sound or habit as a verb phrase, home)
ANIMALS = [("rabbit", "hop through the grass", "a cosy burrow"), ("fox", "run along the hedge", "a den under an old oak"),
           ("mouse", "nibble on cheese", "a hole in the wall"), ("bear", "look for honey", "a cave on the hill"),
           ("duck", "swim in circles", "a nest by the pond"), ("hedgehog", "roll up into a ball", "a pile of leaves"),
           ("squirrel", "jump from branch to branch", "a hollow tree"), ("owl", "sit and watch the stars", "a tall pine tree"),
           ("frog", "splash in the mud", "a pond full of lilies"), ("turtle", "walk slowly in the sun", "a quiet bank of the river"),
           ("cat", "sleep on the warm roof", "a house with a red door"), ("puppy", "chase its own tail", "a basket in the kitchen"),
           ("goat", "climb on the rocks", "a barn on the farm"), ("pony", "gallop over the field", "a stable with fresh hay"),
           ("penguin", "slide down the ice", "a white island"), ("otter", "float on its back", "a den by the river"),
           ("bee", "buzz from flower to flower", "a golden hive"), ("snail", "carry its shell up the wall", "a garden full of lettuce"),
           ("elephant", "spray water with its trunk", "a wide green valley"), ("monkey", "swing in the trees", "a noisy forest")]
TRAITS = """little small young tiny cheerful curious brave shy clever gentle kind busy sleepy funny quiet careful""".split()
FEELINGS = """happy glad proud cheerful pleased""".split()
SADNESS = """sad upset worried unhappy""".split()
WEATHER = [("sunny", "The sun was warm and the sky was blue."), ("windy", "The wind blew and the leaves danced in the air."),
           ("rainy", "Soft rain fell on the roofs and on the grass."), ("snowy", "Snow lay on the hills, and the air was cold and clear."),
           ("foggy", "A thick fog hid the trees."), ("bright", "The birds sang and the flowers opened."),
           ("cloudy", "Grey clouds moved slowly over the hills."), ("cool", "The air was fresh and smelled of leaves.")]
SEASONS = "spring summer autumn winter".split()
PLACES = [("park", "in"), ("garden", "in"), ("forest", "in"), ("village", "in"), ("meadow", "in"), ("farm", "on"), ("beach", "on"),
          ("hill", "on"), ("market", "at"), ("lake", "at"), ("river", "at"), ("school", "at"), ("playground", "on"), ("kitchen", "in"),
          ("library", "in"), ("barn", "in"), ("valley", "in"), ("bridge", "on"), ("orchard", "in"), ("harbour", "at")]
HIDING = ["under the bed", "behind the sofa", "in the tall grass", "under a bush", "behind a big stone", "on top of the cupboard",
          "inside an old boot", "between two books", "under a pile of leaves", "next to the well", "in the hollow tree",
          "behind the door", "at the bottom of the basket", "on the window sill", "beside the fence"]
COLOURS = "red blue green yellow orange purple white brown pink golden".split()
TOYS = "ball kite doll drum boat hat scarf book bell bucket whistle puzzle ring lantern spinning top toy car teddy bear marble".replace(
    "spinning top", "spinning_top").replace("toy car", "toy_car").replace("teddy bear", "teddy_bear").split()
TOYS = [t.replace("_", " ") for t in TOYS]
FOODS = ["apple", "cake", "pie", "loaf of bread", "bowl of soup", "pancake", "cookie", "pear", "carrot", "sandwich", "basket of berries",
         "jar of honey"]
RELATIVES = [("mother", "she", "her"), ("father", "he", "his"), ("grandmother", "she", "her"), ("grandfather", "he", "his"), ("sister", "she", "her"),
             ("brother", "he", "his"), ("aunt", "she", "her"), ("uncle", "he", "his"), ("teacher", "she", "her"), ("neighbour", "he", "his")]
HOBBIES = [("paint", "painting", "pictures of everything"), ("sing", "singing", "songs all day long"), ("read", "reading", "books about far places"),
           ("dance", "dancing", "in front of the mirror"), ("cook", "cooking", "soup for the family"), ("swim", "swimming", "in the cool water"),
           ("climb", "climbing", "up the highest trees"), ("run", "running", "faster than the wind"), ("build", "building", "towers of stones"),
           ("plant", "planting", "seeds in small pots"), ("fish", "fishing", "with a long rod"), ("draw", "drawing", "animals with a pencil")]
MAKE = [("cake", ["flour", "eggs", "sugar", "milk"], "baked", "oven"), ("kite", ["paper", "string", "two sticks", "glue"], "made", "table"),
        ("boat", ["wood", "nails", "a sail", "paint"], "built", "shed"), ("soup", ["carrots", "onions", "salt", "water"], "cooked", "stove"),
        ("scarf", ["wool", "two needles", "a button", "thread"], "made", "chair"), ("birdhouse", ["boards", "nails", "a hammer", "paint"], "built", "tree"),
        ("snowman", ["snow", "a carrot", "two buttons", "an old hat"], "built", "yard"), ("lantern", ["paper", "wire", "a candle", "glue"], "made", "window"),
        ("necklace", ["beads", "string", "a shell", "a bow"], "made", "box"), ("sandcastle", ["sand", "a bucket", "shells", "a flag"], "built", "beach")]
FEARS = [("the dark", "night", "a small lamp", "the shadows were only coats and chairs"), ("thunder", "a storm", "a warm blanket", "the noise was only the clouds meeting"),
         ("deep water", "the swimming lesson", "a round swimming ring", "the water could carry her like a hand"), ("dogs", "a walk", "a soft voice", "the dog only wanted to play"),
         ("high places", "a trip to the tower", "a strong hand to hold", "the view was wide and lovely"), ("the stage", "the school play", "three deep breaths", "the people in the hall were smiling"),
         ("the first day of school", "Monday morning", "a lucky stone in the pocket", "the other children were just as shy")]
PLANTS = [("sunflower", "yellow flower"), ("pumpkin", "round orange pumpkin"), ("bean", "long green bean"), ("apple tree", "small red apple"),
          ("rose", "sweet red rose"), ("carrot", "long orange carrot"), ("strawberry", "sweet red strawberry"), ("tomato", "big red tomato")]
LESSONS = {
    "lost": ["It is good to put things back in their place.", "Friends help each other look.", "If you look slowly, you see more."],
    "help": ["A small kindness can be a big help.", "Helping others makes everyone happy.", "Even the smallest friend can help."],
    "make": ["If it does not work the first time, try again.", "Good things take time.", "Working together is more fun than working alone."],
    "share": ["Sharing makes a toy twice as much fun.", "It is better to play together than alone.", "When we take turns, nobody has to be sad."],
    "fear": ["Being brave does not mean that you are never afraid.", "Many things are less scary when you look at them closely.", "It helps to tell a friend when you are afraid."],
    "trip": ["The way can be as nice as the end of the trip.", "Home is the best place after a long day.", "A map is good, but a friend is better."],
    "grow": ["Patience makes things grow.", "A little care every day goes a long way.", "Waiting is easier when you have work to do."],
    "race": ["It does not matter who is first if everybody has fun.", "Slow and steady can win.", "A good friend is worth more than a prize."],
    "truth": ["It is always better to tell the truth.", "Everyone makes mistakes, and everyone can say sorry.", "The truth makes the heart light."],
    "rain": ["A good day does not need the sun.", "With friends, any weather is fine.", "When one plan fails, another can be even better."],
}
