"""What happens in the stories. A plot is a list of beats; a beat is a list of sentences of which one is told.

Slots: A, a, ta, he, him, his: the hero's name, kind, trait and pronouns; B, b, tb, bhe, bhim, bhis: the other's;
home, thing,
place, far, color, food, skill, fear, n, weather, time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plot:
    """`about`: which slot the plot turns on ("hero", "thing" or "place"), for stories asked for on that subject."""

    about: str
    beats: tuple[tuple[str, ...], ...]


OPENINGS = (
    "Once upon a time, there was a {ta} {a} named {A}.",
    "Once there was a {a} named {A}, who was very {ta}.",
    "A {ta} {a} named {A} lived near a {home}.",
    "Once upon a time, a {a} named {A} lived by a {home}.",
    "There once was a {ta} {a} called {A}.",
    "Long ago, a {ta} {a} called {A} lived in a small house by a {home}.",
    "{A} was a {ta} {a} who lived near a {home}.",
    "In a house near a {home} lived a {a} named {A}.",
)

ENDINGS = (
    "From that day on, {A} and {B} were best friends.",
    "{A} never forgot that day.",
    "That night, {A} fell asleep with a smile.",
    "And they laughed about it for a long time.",
    "It was the best day of the year.",
    "After that, {A} was never lonely again.",
    "Everyone in the village heard about it.",
    "And so the day ended well for {A} and {B}.",
    "The next day, they met at the {place} again.",
    "{A} told the story to everyone.",
)

PLOTS: dict[str, Plot] = {
    "lost thing": Plot("thing", (
        ("One {time}, {A} lost {his} {color} {thing}.", "{A} had a {color} {thing}, but one {time} it was gone.",
         "The {thing} of {A} was the best in the village, but one {time} {he} could not find it."),
        ("{he} looked under the bed and behind the door, but it was not there.", "{he} looked for it at the {place} and at the {far}.",
         "{he} searched the whole house and found nothing."),
        ("Then {he} met a {tb} {b} named {B}.", "A {b} named {B} saw that {A} was sad.", "{he} asked {B} the {b} for help."),
        ('"I saw a {thing} near the {far}," said {B}.', '"Let us look for the {thing} together," said {B}.',
         '"Do not cry," said {B}. "I will help you."'),
        ("They walked to the {far} and looked everywhere.", "Together they went to the {far}."),
        ("There was the {thing}, under an old tree!", "At last {B} found the {thing} in the grass.",
         "Behind a big stone they found the {color} {thing}."),
        ("{A} was so happy that {he} hugged {B}.", '"Thank you, {B}!" said {A}.', "{A} gave {B} {food} to say thank you."),
    )),
    "found thing": Plot("thing", (
        ("One {time}, {A} found a {color} {thing} at the {far}.", "While walking to the {far}, {A} saw a {color} {thing} in the grass.",
         "One {time}, there was a {thing} in front of the door."),
        ('"Whose {thing} is this?" {he} asked.', '"What a beautiful {thing}," said {A}.', "{he} did not know who had lost it."),
        ("{he} wanted to keep it, but it was not {his}.", "{he} asked everyone at the {far} about it.", "{he} carried the {thing} from house to house."),
        ("Then {he} saw a {b} who was looking for something.", "At last {he} met {B}, a {tb} {b}.", "By the road sat a sad {b} named {B}."),
        ('"That is my {thing}!" said {B}.', '"I lost my {thing} {n} days ago," said {B}.', '"My {thing}! I looked for it all day," said {B}.'),
        ("{A} gave the {thing} back at once.", "{A} smiled and gave {bhim} the {thing}."),
        ("{B} was so glad that {bhe} gave {A} {food}.", '"You are very kind," said {B}.', "They sat down together and shared {food}."),
    )),
    "magic thing": Plot("thing", (
        ("One {time}, an old woman gave {A} a {color} {thing}.", "One {time}, {A} found a strange {thing} near the {far}."),
        ('"This {thing} can give you one wish," said a voice.', "When {A} touched the {thing}, it began to shine.", "The {thing} could speak!"),
        ("{A} thought about it for {n} days.", "{A} did not know what to wish for.", "First {A} wanted gold, and then {he} wanted a castle."),
        ("Then {he} met {B}, a {b} who was very ill.", "Then {he} saw that {B} the {b} was hungry and cold.", "Then {his} friend {B} the {b} got lost in the {weather}."),
        ('"I wish that {B} is well and happy," said {A}.', '"Please help my friend {B}," {A} told the {thing}.'),
        ("The {thing} began to glow, and the wish came true.", "There was a bright light, and {B} was safe and well.", "At once {B} stood at the door and smiled."),
        ("After that, the {thing} was only a {thing}, but {A} was happy.", '"A friend is better than gold," said {A}.', "The {thing} never spoke again."),
    )),
    "gift": Plot("thing", (
        ("It was the birthday of {B} the {b}.", "The next day was the birthday of {B}, a {tb} {b}."),
        ("{A} wanted to give {bhim} a {thing}.", '"I will give {bhim} a {color} {thing}," thought {A}.'),
        ("But {A} had no money.", "But the {thing} in the shop cost too much.", "But there was no {thing} in the whole village."),
        ("So {he} made a {thing} with {his} own hands.", "So {A} worked for {n} days and made one at home.", "So {he} asked the old carpenter how to make one."),
        ("It was a little crooked, but it was {color} and pretty.", "It was not perfect, but {A} had worked hard.", "When it was ready, {he} put it in a {color} box."),
        ('"A {thing}!" said {B}. "It is the best gift of all."', "When {B} saw the {thing}, {bhe} jumped for joy.", "{B} liked the {thing} more than any other gift."),
        ("They ate cake and sang until the evening.", "They danced and ate {food}.", "Then everyone had some cake."),
    )),
    "quarrel": Plot("thing", (
        ("{A} and {his} friend {B} the {b} had one {thing}.", "One {time}, {A} and {B} the {b} found a {color} {thing}."),
        ('"The {thing} is mine!" said {A}.', '"I saw the {thing} first," said {B}.', "Both wanted the {thing}."),
        ("They pulled and pulled, and the {thing} broke.", "They were so angry that they did not speak for {n} days.", "They shouted so loudly that the birds flew away."),
        ("{A} went home and felt sad.", "That evening, {A} could not sleep.", "Without {B}, the days were long and quiet."),
        ('"I am sorry," said {A} the next morning.', "The next day, {A} went to {B} and said sorry.", '"A friend is better than a {thing}," thought {A}.'),
        ('"I am sorry too," said {B}.', "{B} smiled and said sorry too."),
        ("From then on, they shared the {thing}.", "They mended the {thing} and played together.", "Then they shared {food} and laughed."),
    )),
    "new friend": Plot("hero", (
        ("{A} had no friends and was often alone.", "{A} was new at the {place} and knew nobody.", "Every day, {A} played alone at the {far}."),
        ("One {time}, {he} met a {tb} {b} named {B}.", "One {time}, a {b} named {B} came to the {place}."),
        ('"Do you want to play with me?" asked {B}.', '"Hello, my name is {B}," said the {b}.', '"Why are you sad?" asked {B}.'),
        ("{A} was shy, but {he} said yes.", '"Yes, please," said {A}.', "{A} smiled for the first time that day."),
        ("They ran to the {far} and played until the evening.", "They climbed a hill and looked at the clouds.", "They built a little house of sticks and leaves."),
        ("When it got dark, they shared {food}.", "They laughed so much that they forgot the time.", "{B} showed {A} a secret path to the {far}."),
        ('"Will you come again tomorrow?" asked {A}.', '"Now I have a friend," said {A}.', '"See you tomorrow!" said {B}.'),
    )),
    "rescue": Plot("hero", (
        ("One {time}, {A} heard someone call for help.", "One {time}, {A} was walking near the {far}."),
        ("A {b} named {B} had fallen into a deep hole.", "A {tb} {b} named {B} was stuck in the mud.", "{B} the {b} sat on a high rock and could not get down."),
        ('"Please help me!" cried {B}.', '"I cannot move," said {B}.', "{B} was cold and afraid."),
        ("{A} was afraid too, but {he} wanted to help.", "{A} thought for a moment.", '"Wait, I will help you," said {A}.'),
        ("{he} found a long rope and threw one end to {B}.", "{he} took a big branch and held it out to {B}.", "{he} called all the others, and they pulled together."),
        ("They pulled and pulled, and at last {B} was free.", "Slowly, {B} came up and was safe.", "After a long time, {B} was safe."),
        ('"You saved me," said {B}. "Thank you!"', "{B} thanked {A} and gave {him} {food}.", '"You are very brave," said {B}.'),
    )),
    "learning": Plot("hero", (
        ("{A} wanted to learn to {skill}.", "More than anything, {A} wanted to {skill}.", "All the others could {skill}, but {A} could not."),
        ("The first time, {he} tried and failed.", "{he} tried {n} times, but it did not work.", "On the first day, everything went wrong."),
        ("Some of the others laughed at {him}.", "{A} was sad and wanted to stop.", '"I will never learn it," said {A}.'),
        ("But a {tb} {b} named {B} came to {him}.", "Then {his} friend {B} the {b} came by."),
        ('"Try a little every day," said {B}.', '"I will show you how," said {B}.', '"Nobody can do it at once," said {B}.'),
        ("So {A} practiced every {time}.", "Every day they practiced at the {far}.", "{A} tried again and again."),
        ("And one day {he} could {skill} very well.", "After {n} weeks, {A} could {skill} better than all the others.", "At last {he} could {skill}, and everyone clapped."),
    )),
    "sharing": Plot("hero", (
        ("One cold {time}, {A} had only {food} left.", "One {time}, {A} sat down to eat {food}."),
        ("Then a hungry {b} named {B} came by.", "At the door stood {B}, a hungry {b}.", "A {tb} {b} named {B} looked at {him} with big eyes."),
        ('"I have not eaten for {n} days," said {B}.', '"May I have a little?" asked {B}.', "{B} did not say a word."),
        ("{A} was hungry too, but {he} gave {bhim} half.", '"Come and eat with me," said {A}.', "{A} thought for a moment and shared the food."),
        ("They ate together and talked until the evening.", "After that, both of them felt warm and happy."),
        ("{n} days later, {A} could not find any food.", "In the winter, the snow was high and {A} had nothing to eat."),
        ("Then {B} came with a full basket.", '"Now I share with you," said {B}.', "But {B} had not forgotten {him} and brought {food}."),
    )),
    "fear": Plot("hero", (
        ("{A} was afraid of {fear}.", "{A} was {ta}, but {he} was afraid of {fear}."),
        ("Every {time}, {he} hid under the bed.", "{he} never went out alone.", "When the others went to the {far}, {A} stayed at home."),
        ("One {time}, {his} friend {B} the {b} did not come home.", "One {time}, {A} heard that {B} the {b} was lost near the {far}."),
        ("Nobody else was there to help.", "{A} knew that {he} had to go.", '"I must find {bhim}," said {A}.'),
        ("{his} legs shook, but {he} went out.", "{he} took a lamp and walked, step by step."),
        ("Near the {far}, {he} found {B}, who was cold and tired.", "Under a tree at the {far} sat {B}.", "After a long walk, {he} heard the voice of {B}."),
        ("They went home together, and {A} was not afraid anymore.", '"You were so brave," said {B}.', '"It is not so bad," said {A}.'),
    )),
    "noise": Plot("place", (
        ("One {time}, there was a strange noise in the {place}.", "Every {time}, {A} heard a noise from the {place}."),
        ('"It is a ghost," said the others.', "Everyone in the village was afraid.", '"What can it be?" asked {A}.'),
        ("{A} took a lamp and went to the {place}.", "{A} wanted to know what it was.", "So {A} and {his} friend {B} the {b} went to the {place}."),
        ("It was dark, and the noise became louder.", "They walked very slowly and listened.", "Something moved behind a stone."),
        ("It was only {n} small kittens that wanted milk.", "But it was only an old door that moved in the wind.", "But it was only {B} the {b}, who could not sleep and sang."),
        ("{A} laughed and laughed.", "Then everybody laughed.", "{A} was glad and went home."),
    )),
    "journey": Plot("place", (
        ("{A} had never seen a {place}.", "{A} wanted to see the big {place} behind the hills.", "One {time}, {A} heard of a {place} where the sun always shines."),
        ('"It is too far for you," said the others.', "So {he} packed {food} and a {thing}.", '"I will go there," said {A}.'),
        ("On the way, {he} met {B}, a {tb} {b}.", "After {n} days, {he} met a {b} named {B}."),
        ('"May I come with you?" asked {B}.', '"I know the way," said {B}.', "They walked on together."),
        ("They crossed a river and slept under the stars.", "The way was long, and the {weather} was cold.", "They walked over {n} hills."),
        ("Then, one morning, they saw the {place}.", "At last they came to the {place}.", "And there it was, the {place}!"),
        ("It was more beautiful than {A} had dreamed.", "They sat down and looked at it for a long time.", '"It was worth it," said {A}.'),
    )),
    "storm": Plot("place", (
        ("One {time}, a big storm came over the {place}.", "One {time}, the {weather} was so strong that the trees shook."),
        ("{A} ran home as fast as {he} could.", "{A} was in {his} warm house and closed the window."),
        ("Then {he} heard a knock at the door.", "There was a small voice outside."),
        ("It was {B}, a wet and cold {b}.", "Outside stood {B} the {b}, who had lost {bhis} house."),
        ('"Come in and get warm," said {A}.', "{A} gave {bhim} a blanket and {food}."),
        ("All night they told stories by the fire.", "They drank tea and waited until the storm was over."),
        ("In the morning, there was a rainbow over the {place}.", "The next day the sun was shining, and they built a new house.", "In the morning, the {place} was quiet and bright."),
    )),
    "lost way": Plot("place", (
        ("One {time}, {A} went to the {place} to look for {food}.", "One {time}, {A} walked far into the {place}."),
        ("{he} walked and walked and lost the way.", "Suddenly {he} did not know the way home."),
        ("It got dark, and {A} began to cry.", "The {weather} was cold, and night was near.", "All the paths looked the same."),
        ("Then a {tb} {b} named {B} sat down beside {him}.", "Then {he} saw two bright eyes. It was {B} the {b}."),
        ('"Follow me," said {B}.', '"Follow that star," said {B}. "It shows the way."', '"I know this {place} well," said {B}.'),
        ("They walked past the {far} and over a small bridge.", "Step by step, they found the path again."),
        ("Soon {A} saw the light of {his} house.", "At last {A} was home again."),
    )),
    "garden": Plot("place", (
        ("One spring, {A} put {n} seeds into the earth near the {place}.", "One {time}, {A} found a small seed at the {place}."),
        ('"Nothing will grow there," said {B} the {b}.', "{his} friend {B} the {b} laughed about it."),
        ("But {A} gave the seed water every day.", "{A} waited and waited.", "Every {time}, {A} sang a little song for it."),
        ("After {n} weeks, there was a small green leaf.", "Then it rained, and something green came out of the earth."),
        ("In summer, it was a tall {color} flower.", "It grew and grew until it was a big tree.", "Soon there were {color} flowers everywhere."),
        ('"How beautiful!" said {B}.', "Even {B} was surprised.", "Bees and birds came from everywhere."),
        ("{A} gave {bhim} a seed, too.", '"You only have to wait," said {A}.', "From then on, they worked in the garden together."),
    )),
    "race": Plot("hero", (
        ("One {time}, there was a big race at the {far}.", "{A} and {B} the {b} wanted to know who was faster."),
        ('"I will win," said {B}.', "Everybody thought that {B} would win.", "{A} was not fast, but {he} wanted to try."),
        ("They ran past the {place} and over the bridge.", "At first, {B} was far in front.", "{A} ran as fast as {he} could."),
        ("Then {B} fell and hurt {bhis} foot.", "Suddenly {B} fell over a stone."),
        ("{A} stopped and helped {bhim} up.", "{A} did not run on, but turned back and helped {bhim}."),
        ("Together they walked to the end, side by side.", "They came in last, but they came in together."),
        ("Everyone clapped, and both got a prize.", '"You are the real winner," said {B}.', "The others clapped for a long time."),
    )),
    "cook": Plot("hero", (
        ("One {time}, {A} wanted to cook a soup.", "One {time}, {A} had guests but only a pot of water."),
        ("{he} put a big stone into the pot.", "{he} had carrots, but no salt."),
        ('"What are you doing?" asked {B} the {b}.', "Then {his} friend {B} the {b} came by."),
        ('"I am making soup," said {A}. "Do you have something for it?"', '"It needs a little more," said {A}.'),
        ("{B} brought {food}, and the others brought potatoes and onions.", "Everyone brought something for the pot."),
        ("Soon the soup smelled wonderful.", "They cooked it for a long time."),
        ("It was the best soup that they had ever eaten.", "There was enough for everybody.", '"Soup is best with friends," said {A}.'),
    )),
    "dream": Plot("hero", (
        ("One {time}, {A} fell asleep under a tree.", "One night, {A} had a strange dream."),
        ("In the dream, {he} could fly.", "{he} dreamed that {he} was very big.", "In the dream, {he} was on the moon."),
        ("{he} flew over the {place} and over the {far}.", "The stars were singing, and the moon was {color}."),
        ("There {he} met {B}, a {color} {b}.", "A {tb} {b} named {B} was there, too."),
        ('"Stay here with me," said {B}.', '"Here, take this {thing}," said {B}.'),
        ("Then {A} woke up.", "Then the sun came up, and the dream was over."),
        ("But beside {him} lay a {color} {thing}.", "It was only a dream, but {A} smiled all day.", '"What a wonderful dream," said {A}.'),
    )),
    "star": Plot("hero", (
        ("Every night, {A} looked at the moon and the stars.", "{A} wanted to touch the moon."),
        ("{he} climbed on the roof, but it was not high enough.", "{he} climbed the highest tree, but the moon was still far away."),
        ('"Nobody can reach the moon," said {B} the {b}.', "{his} friend {B} the {b} wanted to help."),
        ("Together they went to the {far}.", "So they walked to the {far} at night."),
        ("There the water was still and clear.", "There was a small pond, quiet as a mirror."),
        ("And in the water {A} saw the moon.", "The moon was lying in the water, round and {color}."),
        ("{A} put a hand into it and was happy.", '"Now I can touch it," said {A}.'),
    )),
}  # fmt: skip

THEME_PLOTS: dict[str, tuple[str, ...]] = {
    "friendship": ("new friend", "quarrel", "race"),
    "courage": ("fear", "rescue"),
    "kindness": ("found thing", "sharing", "storm"),
    "sharing": ("sharing", "cook", "quarrel"),
    "a birthday": ("gift",),
    "a race": ("race",),
    "a journey": ("journey",),
    "a dream": ("dream",),
    "the moon": ("star",),
    "a storm": ("storm",),
    "a wish": ("magic thing",),
    "a gift": ("gift",),
    "learning": ("learning",),
    "a noise in the night": ("noise",),
    "a seed": ("garden",),
    "a soup": ("cook",),
    "being lost": ("lost way",),
    "fear": ("fear",),
}
