"""The closed vocabulary of the shipped tasks: every token is one of these words."""

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
USER, ASSISTANT = "<user>", "<assistant>"
THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"

SPECIAL = (PAD, BOS, EOS, USER, ASSISTANT, THINK, END_THINK, ANSWER, END_ANSWER)
DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
MARKS = ("=", "+", "-", ";", ":", "?", ">", "|", ".")
COMMANDS = ("recall", "add", "chain", "sort", "edit", "drop", "swap", "put", "flip", "after")
_NOUNS = """
ant bag bed bee bell bird boat book bowl box bread bus cake car cat chair clock coat corn cow cup
deer desk dog door duck egg farm fish flag frog gate goat hat hen hill horse house key lake lamp
leaf lion map milk moon nest owl pan pear pen pig plum pond road rock rose sea ship shoe snow sock
sun tent toad train tree vase well wolf wood worm
"""
_ADJECTIVES = "big blue cold dark fast green new old red round small soft tall warm"
_VERBS = "finds follows gives has helps hides holds keeps likes meets sees takes"
NOUNS = tuple(_NOUNS.split())
ADJECTIVES = tuple(_ADJECTIVES.split())
VERBS = tuple(_VERBS.split())
SMALL_WORDS = ("the", "one", "and", "near", "under", "with", "is", "then")

VOCABULARY = (
    SPECIAL + DIGITS + LETTERS + MARKS + COMMANDS + NOUNS + ADJECTIVES + VERBS + SMALL_WORDS
)
