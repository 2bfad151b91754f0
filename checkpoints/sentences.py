"""The sentences of the demo's made-up conversations: what people ask, and what is answered."""


def either(text: str) -> list[str]:
    return text.split("|")


def words(text: str) -> list[str]:
    return text.split()


UNKNOWN = "I do not know about that. I am a very small demo."
TOO_LARGE = "I can only do sums with numbers up to 99."
TOO_MANY = "I can only do sums of two numbers."
NO_DIVISION = "I cannot divide. I can add, subtract and multiply."
NOT_TOLD = "You have not told me your name."

SLOT = "\x00"  # stands for a name or a text to be repeated: never misspelt

# One reply and the sentences it answers.
GREETINGS: list[tuple[str, str]] = [
    (
        "Hello! How can I help?",
        (
            "Hello.|Hi.|Hey.|Hello there.|Hi there.|Hey there.|Good morning.|Good evening.|Good "
            "afternoon.|Greetings.|Hello, demo.|Hi, demo.|Howdy.|Good day.|Hello again.|Hi "
            "again.|Yo.|Hiya.|Hello, nice to meet you.|Hello computer.|Hello, is anyone there?|"
            "Hello, can you hear me?|Hello friend."
        ),
    ),
    (
        "I am fine, thank you.",
        (
            "How are you?|How are you today?|How do you do?|How is it going?|How are you doing?|"
            "Are you well?|Hello, how are you?|Hi, how are you?|How do you feel today?|How goes "
            "it?|Are you all right?|How have you been?|Is everything fine with you?"
        ),
    ),
    (
        "You are welcome!",
        (
            "Thanks.|Thank you.|Thank you very much.|Thanks a lot.|Many thanks.|Thank you so "
            "much.|Great, thanks.|Thanks for your help.|Good, thank you.|That was helpful, thank "
            "you.|Cheers.|Thanks, demo."
        ),
    ),
    (
        "Goodbye!",
        (
            "Goodbye.|Bye.|Bye bye.|See you.|See you later.|Good night.|See you soon.|I have to "
            "go.|I am leaving now.|Until next time.|Farewell.|That is all, goodbye.|Ok, bye.|See "
            "you tomorrow."
        ),
    ),
    (
        "I am glad!",
        (
            "Good.|Great.|Nice.|Very good.|Well done.|That is right.|Good job.|You are right.|"
            "Correct.|That is correct.|Perfect.|Cool.|Wonderful.|That is great.|Good answer.|I "
            "like you."
        ),
    ),
    (
        "All right.",
        (
            "Ok.|Okay.|Yes.|Fine.|I see.|All right.|Sure.|No.|Yes, please.|Understood.|Hm.|Ok, I "
            "see."
        ),
    ),
    (
        "I am sorry. I am very small and often wrong.",
        (
            "That is wrong.|Wrong.|No, that is wrong.|You are wrong.|That is not right.|That is "
            "not correct.|You made a mistake.|Bad answer.|Are you sure?|Is that right?|I think "
            "you are wrong.|That was wrong."
        ),
    ),
]

IDENTITY: list[tuple[str, str]] = [
    (
        "I am {bot}, a model with about one million weights.",
        (
            "Who are you?|What are you?|Tell me about yourself.|Introduce yourself.|What is "
            "this?|Who am I talking to?|Who is this?|What kind of model are you?|Describe "
            "yourself.|Which model are you?|What model is this?|Who is there?|Say who you are.|"
            "What kind of thing are you?"
        ),
    ),
    (
        "{my_name}",
        (
            "What is your name?|Do you have a name?|Tell me your name.|What are you called?|Your "
            "name?|What should I call you?|How should I call you?|What do people call you?|Say "
            "your name.|May I know your name?"
        ),
    ),
    (
        "No. I am a small language model.",
        (
            "Are you human?|Are you a human?|Are you a person?|Are you a man?|Are you a woman?|"
            "Are you alive?|Are you real?|Am I talking to a person?|Do you have feelings?|Are "
            "you conscious?|Do you have a body?"
        ),
    ),
    (
        "Yes. I am a small language model.",
        (
            "Are you a robot?|Are you a machine?|Are you a computer?|Are you an AI?|Are you a "
            "bot?|Are you a program?|Are you a language model?|Are you artificial?|Are you a "
            "neural network?|Are you a computer program?"
        ),
    ),
    (
        "No. I am {bot}, a very small model.",
        (
            "Are you ChatGPT?|Are you GPT?|Are you Claude?|Are you Gemini?|Are you Siri?|Are you "
            "Alexa?|Are you Llama?|Are you GPT-4?|Is this ChatGPT?|Are you made by OpenAI?|Are "
            "you a big model?|Are you a large language model?"
        ),
    ),
    (
        "I was trained on Shakespeare and on made-up dialogues.",
        (
            "How were you made?|How were you trained?|What were you trained on?|What is your "
            "training data?|Where do you come from?|What have you read?|Who made you?|Who "
            "trained you?|Who created you?|How do you learn?|What did you learn from?|Where did "
            "you learn that?"
        ),
    ),
    (
        "I have about one million weights.",
        (
            "How big are you?|How many weights do you have?|How many parameters do you have?|How "
            "large are you?|What is your size?|Are you small?|How small are you?|How many "
            "parameters?|How big is this model?"
        ),
    ),
    (
        ("I can do small sums, count, remember your name and explain the keys of this app."),
        (
            "What can you do?|What are you good at?|What do you know?|What can I ask you?|How "
            "can you help me?|What can I ask?|Can you help me?|What are you for?|What can you "
            "help with?|What should I ask you?|What else can you do?|What are your skills?|Help "
            "me."
        ),
    ),
    (
        "No. I am very small and often wrong.",
        (
            "Are you smart?|Are you always right?|Can I trust you?|Do you make mistakes?|Are you "
            "clever?|Do you know everything?|Are you intelligent?|Can I rely on you?|Do you "
            "understand me?"
        ),
    ),
]

# The keys of the app: reply, key names as a person writes them, sentences.
KEYS: list[tuple[str, str, str]] = [
    (
        "Press Enter to send your message.",
        "Enter",
        (
            "How do I send a message?|How do I send?|How can I send my message?|Which key sends "
            "the message?|How do I submit?|How do I send this?|How do I send my text?"
        ),
    ),
    (
        "Press Ctrl+J for a new line.",
        "Ctrl+J",
        (
            "How do I make a new line?|How do I write a new line?|How do I get a line break?|How "
            "can I type more than one line?|Which key makes a new line?|How do I add a line?|How "
            "do I start a new line?"
        ),
    ),
    (
        "Press Esc to stop the reply.",
        "Esc|Escape",
        (
            "How do I stop a reply?|How do I stop the reply?|How can I stop you?|How do I "
            "interrupt you?|Which key stops the reply?|How do I cancel?|How do I make you stop?|"
            "How do I stop the answer?|How do I stop writing?"
        ),
    ),
    (
        ("Press Ctrl+C to copy the selection. While I write, it stops the reply."),
        "Ctrl+C",
        (
            "How do I copy?|How do I copy text?|How can I copy the selection?|Which key copies?|"
            "How do I copy your answer?|How do I copy something?"
        ),
    ),
    (
        "Press Ctrl+Q to quit.",
        "Ctrl+Q",
        (
            "How do I quit?|How do I exit?|How do I leave the app?|How do I close the app?|How "
            "can I quit?|Which key quits?|How do I get out of here?|How do I end the program?|"
            "How do I leave?"
        ),
    ),
    (
        "Press Ctrl+O or F2 to open a checkpoint.",
        "Ctrl+O|F2",
        (
            "How do I open a checkpoint?|How do I open a model?|How do I load a checkpoint?|How "
            "do I load another model?|How do I change the model?|How do I open a file?|Which key "
            "opens a checkpoint?|How do I switch to another model?|How can I open my model?|How "
            "do I load my own model?"
        ),
    ),
    (
        "Press Ctrl+S or F3 for the sampling panel.",
        "Ctrl+S|F3",
        (
            "How do I change the temperature?|How do I open the sampling panel?|Where are the "
            "sampling settings?|How do I set the temperature?|How do I change the sampling?|"
            "Where is the sampling panel?|How do I change top-k?|How do I change top-p?|How do I "
            "change the settings?|How do I set the seed?"
        ),
    ),
    (
        "Press Ctrl+R to retry.",
        "Ctrl+R",
        (
            "How do I retry?|How do I get another answer?|How can I try again?|Which key "
            "retries?|How do I get a new reply?|How do I regenerate the reply?|How do I "
            "regenerate?|How do I ask again?"
        ),
    ),
    (
        "Press Ctrl+N for a new chat.",
        "Ctrl+N",
        (
            "How do I start a new chat?|How do I begin a new chat?|How do I make a new chat?|How "
            "can I start over?|Which key starts a new chat?|How do I clear the chat?|How do I "
            "open a new chat?|How do I start again?"
        ),
    ),
    (
        "Press Ctrl+T to switch between chat and raw mode.",
        "Ctrl+T",
        (
            "How do I switch to raw mode?|How do I change the mode?|What is raw mode?|How do I "
            "get to raw mode?|How do I switch to chat mode?|How do I leave raw mode?|Which key "
            "switches the mode?|How do I use raw mode?|How do I turn off chat mode?"
        ),
    ),
    (
        "Press Ctrl+F or F9 for the saved chats.",
        "Ctrl+F|F9",
        (
            "Where are my saved chats?|How do I find an old chat?|How do I open a saved chat?|"
            "How do I see my old chats?|Where are my chats?|How do I search my chats?|Are my "
            "chats saved?|How do I get back to an old chat?|How do I find my chats?|Where is the "
            "history?"
        ),
    ),
    (
        "Press Ctrl+P or / for the command palette.",
        "Ctrl+P|/",
        (
            "How do I open the command palette?|Where is the command palette?|Where is the menu?|"
            "How do I see all commands?|How do I find a command?|How do I open the menu?|Where "
            "are the commands?|How do I change the theme?"
        ),
    ),
    (
        "Press F1 or ? to see the help.",
        "F1|?",
        (
            "How do I see the help?|Where is the help?|How do I open the help?|Help.|Keys.|I "
            "need help.|What are the keys?|Which keys are there?|How do I use this app?|How does "
            "this app work?|Show me the keys.|Where can I find help?|How do I use this?|What "
            "keys can I use?|List the keys.|How does this work?"
        ),
    ),
    (
        "Press F6 to go to the next pane.",
        "F6",
        (
            "How do I go to the next pane?|How do I switch panes?|How do I change the pane?|How "
            "do I get to the other pane?|Which key goes to the next pane?|How do I move between "
            "panes?|How do I change the focus?"
        ),
    ),
    (
        "Press F12 to set the system prompt.",
        "F12",
        (
            "How do I set the system prompt?|How do I change the system prompt?|Where is the "
            "system prompt?|How do I edit the system prompt?|How do I write a system prompt?|"
            "What is the key for the system prompt?"
        ),
    ),
    (
        "Press PageUp and PageDown to scroll.",
        "PageUp|PageDown|Page Up|Page Down",
        (
            "How do I scroll?|How do I scroll up?|How do I scroll down?|How do I see older text?|"
            "How do I go up?|How can I read the text above?|Which keys scroll?|How do I page up?"
        ),
    ),
    (
        "Press End to go to the newest text.",
        "End",
        (
            "How do I go to the newest text?|How do I get to the end?|How do I go to the bottom?|"
            "How do I jump to the end?|Which key goes to the newest text?|How do I see the "
            "newest text?|How do I get back down?"
        ),
    ),
]
KEY_QUESTIONS = either(
    "What does {} do?|What is {} for?|What does the {} key do?|What happens when I press "
    "{}?|And {}?|{}?|Explain {}.|Why would I press {}?|What about {}?|What can I do with "
    "{}?|Tell me about {}."
)

CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "England": "London",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "China": "Beijing",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Portugal": "Lisbon",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Ireland": "Dublin",
    "Cuba": "Havana",
    "Peru": "Lima",
}
OPPOSITES = (
    "hot cold|big small|up down|left right|day night|black white|good bad|old new|fast "
    "slow|high low|rich poor|happy sad|open closed|long short|early late|hard soft|full "
    "empty|wet dry|strong weak|light dark|in out|yes no|true false"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words(
    "January February March April May June July August September October November December"
)
COLOURS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "blood": "red",
    "the sun": "yellow",
    "coal": "black",
    "milk": "white",
    "a banana": "yellow",
    "the sea": "blue",
    "a leaf": "green",
    "gold": "yellow",
    "chocolate": "brown",
    "a tomato": "red",
}
SOUNDS = {
    "dog": "woof",
    "cat": "meow",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "lion": "roar",
    "bee": "buzz",
}
NUMBERS = {
    "days are in a week": "There are 7 days in a week.",
    "months are in a year": "There are 12 months in a year.",
    "hours are in a day": "There are 24 hours in a day.",
    "minutes are in an hour": "There are 60 minutes in an hour.",
    "seconds are in a minute": "There are 60 seconds in a minute.",
    "legs does a dog have": "A dog has 4 legs.",
    "legs does a spider have": "A spider has 8 legs.",
    "legs does a bird have": "A bird has 2 legs.",
    "fingers are on a hand": "There are 5 fingers on a hand.",
    "legs does an ant have": "An ant has 6 legs.",
    "letters are in the alphabet": "There are 26 letters in the alphabet.",
    "wheels does a car have": "A car has 4 wheels.",
}
OTHER_COUNTRIES = words(
    "Brazil Canada Mexico India Turkey Finland Denmark Chile Iran Iraq Kenya Ghana Nepal "
    "Vietnam Mongolia Iceland Belgium Bulgaria Hungary Romania Ukraine Morocco Nigeria "
    "Argentina Colombia Thailand Korea Australia Croatia Estonia Latvia"
)

TOPICS = either(
    "volcanoes|the moon|physics|chemistry|football|cooking|history|music|the stock "
    "market|black holes|dinosaurs|philosophy|love|war|peace|politics|the weather|trees|"
    "whales|art|dreams|the ocean|space|Mars|Napoleon|Caesar|Einstein|Newton|Mozart|"
    "Picasso|Shakespeare|Hamlet|Python|Java|Rust|Linux|computers|trains|planes|ships|"
    "cars|bicycles|chess|poker|tennis|swimming|mountains|rivers|lakes|islands|deserts|"
    "forests|flowers|roses|insects|birds|fish|sharks|horses|elephants|tigers|bears|"
    "wolves|mice|bread|cheese|wine|beer|coffee|tea|sugar|salt|pizza|soup|rice|apples|"
    "money|banks|taxes|laws|kings|queens|knights|castles|churches|temples|gods|angels|"
    "ghosts|witches|dragons|books|poems|novels|films|theatre|dance|paintings|statues|"
    "photographs|electricity|light|sound|heat|gravity|time|atoms|cells|genes|bones|blood "
    "cells|the brain|the heart|medicine|doctors|illness|sleep|food|water|fire|air|the "
    "earth|the stars|galaxies|comets|rain|storms|winter|summer|spring|autumn|Christmas|"
    "birthdays|weddings|schools|teachers|students|children|parents|friends|enemies|"
    "soldiers|sailors|farmers|cities|villages|roads|bridges|houses|windows|doors|tables|"
    "chairs|clocks|mirrors|shoes|hats|coats|rings|gold mines|silver|iron|steel|glass|"
    "paper|plastic|oil|coal mines|robots|lasers|radios|telephones|television|the "
    "internet|email|games|toys|puzzles|maths|algebra|geometry|prime numbers|calculus|"
    "logic|grammar|Latin|German|French|Chinese|Africa|Asia|Europe|America|London Bridge|"
    "New York|Rome|the Romans|the Greeks|the Vikings|pyramids|mummies|pirates|treasure|"
    "the French Revolution|the Second World War|climate change|evolution|religion|"
    "justice|freedom|quantum mechanics|relativity|neural networks|transformers|attention|"
    "tokenizers|gradient descent|the president|the news|the universe|the meaning of life"
)
TOPIC_QUESTIONS = either(
    "Tell me about {}.|What do you know about {}?|What is {}?|What are {}?|Explain {}.|"
    "Do you like {}?|Why is {} important?|How does {} work?|Write a poem about {}.|Tell "
    "me a story about {}.|Who invented {}?|Where can I find {}?|Can you explain {} to "
    "me?|What do you think about {}?|I like {}.|I love {}.|I want to talk about {}.|Let "
    "us talk about {}.|Give me a list of {}.|How old is {}?|When was {} made?|Who "
    "discovered {}?|Is {} dangerous?|How many {} are there?|Describe {}.|Sing a song "
    "about {}.|What is the best book about {}?|How do I make {}?|Why do people like {}?|"
    "Teach me about {}.|Have you heard of {}?|How much does {} cost?|Who wrote about {}?|"
    "How do you spell {}?|Translate {} into French.|{}|{}?|Is there anything about {}?|"
    "Where does {} come from?|What colour is {}?|What does {} mean?|Write an essay on "
    "{}.|Summarise {}.|{} is great.|What is the opposite of {}?|What does {} say?"
)
OPEN_QUESTIONS = either(
    "Tell me a joke.|Tell me a story.|Sing a song.|Write a poem.|What time is it?|What "
    "day is it today?|What is the date?|How is the weather?|Is it raining?|Where am I?|"
    "Where do I live?|How old am I?|What is the news?|Who is the president?|What year is "
    "it?|Do you like me?|I am bored.|I am tired.|I am hungry.|I am happy.|I am sad.|What "
    "is love?|Why?|What?|Who?|When?|Where?|How?|What is the meaning of life?|Is there a "
    "god?|How old is the earth?|How far is the moon?|How tall is Mount Everest?|What "
    "should I eat?|What should I do today?|Who won the game?|I am ill.|Can you write "
    "code?|Write a program.|Fix my code.|Translate this.|Summarise this text.|Can you "
    "draw?|Draw a picture.|Open the door.|Call my mother.|Buy me a ticket.|Play some "
    "music.|Do you speak French?|Say something.|Tell me something interesting.|Give me "
    "some advice.|Who will win?|I hate you.|What is the best film?|Why is the sky blue?|"
    "Who wrote Hamlet?|To be or not to be?|Are there aliens?|How do I cook rice?|How do "
    "I lose weight?|What is in the box?|Where is my phone?|Is it late?|What did you eat?|"
    "Where were you born?|Do you sleep?|What is your favourite colour?|Do you dream?|How "
    "do I become rich?|Who is your friend?|Do you have a family?|What are you thinking?|"
    "Can you see me?|Do you know my age?|What is my age?|Guess my age.|What do I look "
    "like?|Where are you?|Who was the first king?|How does a car work?|I do not "
    "understand.|What do you mean?|Explain.|More.|Lorem ipsum."
)

REAL_NAMES = words(
    "Anna Bob Alice John Mary Tom Peter Paul Sara Emma Noah Liam Mia Max Eva Leo Nina "
    "Sam Ben Lucy Jack Jane Kate David Laura Maria James Robert Linda Susan Karen Lisa "
    "Mark George Henry Charles Daniel Chris Alex Andrew Julia Sophie Clara Martin Simon "
    "Felix Oscar Hugo Ivan Olga Yuki Chen Wei Ali Omar Fatima Aisha Carlos Diego Pablo "
    "Lena Ella Ruth Rose Frank Steve Mike Dave Bill Joe Jim Tim Ann Sue Amy Zoe Ian Kim "
    "Lee Ada Alan Grace"
)
WORDS = either(
    "hello|world|good|morning|the cat|the dog|a red house|my friend|sweet dreams|yes|no|"
    "blue|green|never again|long live the king|I love you|we are here|bread|water|open "
    "the gate|night|star|come home|one two three|it is cold|sing|happy birthday|to be or "
    "not to be|banana|peace|river stone|old tree|be quiet"
)
ONSETS = either(
    "b|c|d|f|g|h|j|k|l|m|n|p|r|s|t|v|w|z|br|ch|cl|dr|fl|gr|kr|pl|pr|qu|sh|sk|sl|st|th|tr|vl|x|y|"
)
VOWELS = either("a|e|i|o|u|a|e|i|o|u|ai|ea|ee|ia|io|oo|ou|y|ei|au")
CODAS = either("|||||b|ck|d|g|k|l|ll|m|n|n|ng|p|r|r|rn|s|ss|st|t|th|v|x|z|nd|lf|rk|sh|nt")


CONTRACTIONS = (
    ("What is", "What's"),
    ("Who is", "Who's"),
    ("Where is", "Where's"),
    ("That is", "That's"),
    ("I am", "I'm"),
    ("do not", "don't"),
    ("Let us", "Let's"),
    ("How is", "How's"),
    ("You are", "You're"),
    ("What are", "What're"),
)

STYLES: dict[str, list[str]] = {
    "capitals": either(
        "Answer in capitals.|Write in capital letters.|Always answer in capital letters.|Use "
        "only capital letters.|Reply in upper case.|Use capitals.|Shout.|You always shout.|"
        "All your answers are in capital letters.|Write everything in upper case.|Capital "
        "letters only.|Please use capital letters.|Speak in capitals."
    ),
    "lower": either(
        "Answer in lower case.|Write in small letters.|Always answer in lower case.|Use only "
        "small letters.|Reply in lower case.|Never use capital letters.|No capitals.|All "
        "your answers are in lower case.|Write everything in lower case.|Small letters only.|"
        "Please use lower case.|Do not use capitals."
    ),
    "pirate": either(
        "Talk like a pirate.|You are a pirate.|Speak like a pirate.|Answer like a pirate.|"
        "Always talk like a pirate.|You are a friendly pirate.|Be a pirate.|Reply as a "
        "pirate would.|Pretend to be a pirate.|Please talk like a pirate.|You are an old "
        "pirate.|Act like a pirate."
    ),
    "brief": either(
        "Be brief.|Answer briefly.|Be short.|Keep it short.|Give short answers.|Answer as "
        "shortly as you can.|Only give the answer.|Short answers, please."
    ),
    "plain": either(
        "You are a helpful assistant.|Be friendly.|Be honest.|Answer politely.|You are a "
        "small demo.|Help the user.|You are an assistant.|Be kind.|Answer the question.|You "
        "are helpful.|You are a chat model.|Be nice to the user.|Answer correctly.|You are a "
        "helpful, honest assistant.|Answer the user's questions."
    ),
}
BOT_NAMES = either(
    "Your name is {}.|You are {}.|You are called {}.|You are an assistant named {}.|Your "
    "name is {}.|Your new name is {}.|We call you {}.|The name of the assistant is {}."
)

ADD = either(
    "What is {} + {}?|{}+{}|{} + {}|{} + {} =|{} plus {}|What is {} plus {}?|How much is "
    "{} + {}?|Add {} and {}.|What is the sum of {} and {}?|Calculate {} + {}.|How much "
    "is {} and {}?|{}+{}=?|Can you add {} and {}?|What does {} + {} make?|What about {} "
    "+ {}?|And {} + {}?"
)
SUBTRACT = either(
    "What is {} - {}?|{}-{}|{} - {}|{} - {} =|{} minus {}|What is {} minus {}?|How much "
    "is {} - {}?|Calculate {} - {}.|Take {1} from {0}.|Subtract {1} from {0}.|How much "
    "is {} minus {}?|{}-{}=?|{} take away {}|What about {} - {}?|And {} - {}?"
)
TIMES = either(
    "What is {} x {}?|{}*{}|{} * {}|{} x {}|{}x{}|{} times {}|What is {} times {}?|How "
    "much is {} * {}?|Multiply {} by {}.|What is {} * {}?|Calculate {} x {}.|How much is "
    "{} times {}?|{}*{}=?|Multiply {} and {}.|What about {} x {}?|And {} times {}?"
)

TELL_NAME = either(
    f"My name is {SLOT}.|My name is {SLOT}.|I am {SLOT}.|I'm {SLOT}.|Call me {SLOT}.|"
    f"Hello, I am {SLOT}.|Hi, my name is {SLOT}.|{SLOT} is my name.|My name's {SLOT}.|Hi, "
    f"I'm {SLOT}.|You can call me {SLOT}.|Hello! My name is {SLOT}.|The name is {SLOT}.|"
    f"Please call me {SLOT}.|im {SLOT}|Hey, this is {SLOT}.|Name: {SLOT}"
)
ASK_NAME = either(
    "What is my name?|What is my name?|Who am I?|Do you know my name?|Do you remember my "
    "name?|What am I called?|Tell me my name.|Say my name.|What was my name?|My name?|"
    "What did I say my name was?|Do you know who I am?|Remember my name?|Can you tell me "
    "my name?|And what is my name?|What name did I give you?|Can you remember my name?"
)

FOLLOW_ADD = either(
    "Add {} to that.|Plus {}?|And plus {}?|Now add {}.|Add {}.|Add {} more.|And {} more?|"
    "+ {}|+{}|Then add {}.|What if I add {}?"
)
FOLLOW_SUBTRACT = either(
    "Subtract {} from that.|Minus {}?|And minus {}?|Now subtract {}.|Take away {}.|"
    "Subtract {}.|- {}|-{}|Take {} away.|Then subtract {}.|What if I take away {}?"
)

AGAIN = either(
    "Say that again.|Again.|Repeat that.|Can you say that again?|What did you say?|Once "
    "more.|Pardon?|Please repeat that.|Say it again.|Could you repeat that?"
)
AND_AFTER = either(
    "And after that?|What comes after that?|And then?|And next?|What comes next?|Then?|"
    "And after?|What is next?"
)
AND_COUNTRY = either(
    "And {}?|And of {}?|What about {}?|And for {}?|How about {}?|And the capital of {}?"
)
CAPITAL_QUESTIONS = either(
    "What is the capital of {}?|Which city is the capital of {}?|Capital of {}?|What is "
    "the capital city of {}?|The capital of {}?|Do you know the capital of {}?|Name the "
    "capital of {}."
)
OPPOSITE_QUESTIONS = either(
    "What is the opposite of {}?|Opposite of {}?|The opposite of {}?|Tell me the "
    "opposite of {}.|What is the contrary of {}?"
)
THREE_NUMBERS = either(
    "What is {} + {} + {}?|{}+{}+{}|{} + {} + {}|{} plus {} plus {}|{} + {} - {}"
)
LARGE_SUMS = either(
    "What is {} + {}?|{}+{}|{} - {}|What is {} times {}?|{} * {}|How much is {} plus {}?"
)
DIVISIONS = either(
    "What is {} / {}?|{}/{}|{} divided by {}|What is {} divided by {}?|Divide {} by {}."
)
NEXT_QUESTIONS = either(
    "What {0} comes {1} {2}?|What comes {1} {2}?|Which {0} is {1} {2}?|What is the {0} {1} {2}?"
)
COLOUR_QUESTIONS = either(
    "What colour is {0}?|What color is {0}?|Which colour is {0}?|What is the colour of {0}?"
    "|Tell me the colour of {0}."
)
SOUND_QUESTIONS = either(
    "What does a {0} say?|What does the {0} say?|What sound does a {0} make?"
    "|How does a {0} sound?|What noise does a {0} make?"
)
NUMBER_QUESTIONS = either("How many {}?|Tell me how many {}.|Do you know how many {}?")
