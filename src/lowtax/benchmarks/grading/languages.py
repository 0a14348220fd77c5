"""Words with which answers are stated in many languages, and the spellings that they use for digits and marks.

Each table is a list of alternatives of a regular expression; `WORDS` are whole words where the script has spaces.
"""

# ruff: noqa: RUF001  # letters of many scripts

import re

# "answer", with what may stand around it in a statement
ANSWER = (
    # Chinese, Japanese, Korean
    r"(?:最终|最終|正确|正確|因此|所以|故)*答案|正确的?选项|正確的?選項|正确的答案|本题应?选|答え|正解|解答|正しい(?:答え|選択肢|もの)|最終回答|回答"
    r"|정답|최종 ?답변?|답안?|해답|답"
    # German, Dutch, Swedish
    r"|\b(?:End)?[Aa]ntwort(?:möglichkeit|option)?|\b(?:End)?[Ee]rgebnis|\bLösung|\b[Aa]ntwoord|\b[Ss]vare?t?"
    # Spanish, French, Italian, Portuguese
    r"|\b[Rr]espuesta|\b[Rr]esultado|\b[Rr]éponse|\b[Rr]ésultat|\b[Rr]isposta|\b[Rr]isultato|\b[Rr]esposta"
    r"|\b[Gg]abarito"
    # Russian, Ukrainian, Polish, Czech
    r"|\b[Оо]твет(?:ом|а)?|\b[Вв]ідповідь|\b[Oo]dpowied[źz]|\b[Oo]dpověď"
    # Finnish, Hungarian, Romanian, Bulgarian, Bengali, Tamil
    r"|\b[Vv]astaus|\b[Vv]álasz|\b[Rr]ăspuns(?:ul)?|\b[Оо]тговор(?:ът)?|উত্তর|பதில்|விடை"
    # Turkish, Vietnamese, Indonesian, Arabic, Persian, Hebrew, Hindi, Thai, Greek
    r"|\b[Cc]evap|\b[Yy]anıt|[ĐđDd]áp án|\b[Cc]âu trả lời|\b[Kk]ết quả|\b[Jj]awaban(?:nya)?|(?:ال)?إجابة"
    r"|(?:ال)?جواب|پاسخ|תשובה|उत्तर|ค(?:ำ|\u0e4d\u0e32)ตอบ"
    r"|[Αα]πάντηση"
)
ADJECTIVE = (
    r"(?:riktige|helyes|corect|הנכונה|הנכון|صحیح|است|সঠিক|சரியான|donc|also|somit|daher|entonces|quindi|portanto"
    r"|поэтому|richtige[rs]?|korrekte[rs]?|finale|corret[ao]"
    r"|cert[ao]|correct[ao]?|correcte|final|finale|bonne|exacte"
    r"|esatta|corretta|giusta|certa"
    r"|juste|definitiva|juiste|правильный|верный|окончательный|верным|является|النهائية|الصحيحة|الصحيح|النهائي|هي"
    r"|هو|सही|đúng|yang|benar"
    r"|doğru|prawidłowa|poprawna|správná|rätta|korrekta|ที่ถูกต้อง)(?![a-zà-ÿ])"
)
RIGHT_KIND = r"[Rr]ichtige|[Kk]orrekte|[Cc]orrecta|[Вв]ерный|[Пп]равильный|[Dd]oğru|[Pp]rawidłowa|[Jj]uiste"
IS = (
    r"(?:应该|應該|应当|应|應|就)?(?:是|为|為|选择?|選擇?|等于|等於)|は|が|은|는|이|가|ist|lautet|wäre|is|är|es|sería|est|serait|è|é|seria"
    r"|היא|הוא|on|er|este|হলো|হল"
    r"|является|"
    r"[—–-]|это|jest|to|je|adalah|là|هي|هو|है|คือ|είναι|:|="
)
# "option", between the statement and its letter
OPTION = (
    r"选项|選項|選択肢|선택지|보기|Option|Antwort|Buchstabe|opción|letra|alternativa|inciso|option|lettre|proposition|l['’]option"
    r"|la lettre|opzione|l['’]opzione|lettera|opção|вариант|буква|под буквой|пункт|optie|opcja|alternativ|seçeneği"
    r"|şıkkı|phương án"
    r"|pilihan|opsi|الخيار|الحرف|विकल्प|ตัวเลือก|επιλογή"
)
FILLER = r"(?:the|die|der|das|la|el|lo|le|il|a|o|l['’]|also|daher|somit|donc|entonces|quindi|portanto|thus|: |:|\s)"
# "is right" after a letter
RIGHT = (
    r"(?:die richtige Antwort|la respuesta correcta|la bonne réponse|la réponse correcte|la risposta (?:corretta"
    r"|giusta)"
    r"|a resposta (?:correta|certa)|правильный ответ|верный ответ|doğru cevap)\b"
    r"|(?:是|为|為)?(?:正确|正確)|是?对|が正しい|が正解|が適切|です|가 정답|이 정답"
    r"|가 맞|이 맞|가 옳|ist (?:die )?(?:richtige?|korrekte?)|stimmt"
    r"|es (?:la |el )?(?:respuesta )?(?:correct[ao])|est (?:la )?(?:bonne|correcte?|exacte?|juste)|è (?:la "
    r"|l['’])?(?:risposta )?(?:corrett[ao]|giust[ao]|esatt[ao])"
    r"|(?:é|está) (?:a |o )?(?:resposta |alternativa |opção )?(?:corret[ao]|cert[ao])|верн(?:ый|о|а)|правильн(?:ый"
    r"|о|а)|является (?:верным|правильным)"
    r"|is juist|jest (?:prawidłowa|poprawna)|doğrudur|là đúng|(?:هو|هي) (?:ال)?صحيح|सही है"
)
# "therefore choose" before a letter
CHOOSE = (
    r"(?:故|因此|所以|综上|应|應|本题)(?:应|應|该|本题)?(?:选择?|選擇?)|选择?|選擇|[Ss]eleccion[oa]|[Ee]scolho|[Cc]hoisis|[Ss]celgo"
    r"|[Ww]ähle|[Вв]ыбираю"
)
NOT_BUT = (
    (r"(?:\bnot\b|n['’]t\b)", r"\bbut(?:\s+rather)?\b|[,;]\s*(?:it\s+(?:is|must be|should be)|rather|instead)\b"),
    (r"\b(?:nicht|kein\w*)\b", r"\bsondern\b"),
    (r"\bno\b", r"\bsino\b"),
    (r"\bpas\b", r"\bmais\b"),
    (r"\bnon\b", r"\b(?:ma|bensì)\b"),
    (r"\bnão\b", r"\b(?:mas(?: sim)?|e sim)\b"),
    (r"\bне\b", r"[,;]?\s*\b(?:а|но)\b"),
    (r"不是", r"(?:,\s*)?(?:而是|是)"),
    (r"ではなく", r""),
    (r"(?:가|이) 아니라", r""),
    (r"(?:ليست?|لا)\b", r"\b(?:بل|ولكن)\b"),
)
NOT = r"\b(?:n['’]est|not|nicht|no|ne|pas|non|não|не|ليس|ليست)\b|n['’]t\b|不|ない|아니"
STATES = (
    r"\b(?:is|are|was|were|be|equals?|becomes?|yields?|gives?|totals?|ist|sind|beträgt|lautet|es|son|est|sont|vaut"
    r"|è|sono"
    r"|é|são|равн[аоы]?|составляет|равен|wynosi|adalah|là|هو|هي|है)\b|(?:等于|等於|是|为|為|有|共|得|は|が|은|는|이|가|=|≈|→"
    r"|(?<!\d):(?!\d))"
)
MARKS = str.maketrans({
    "。": ". ", "．": ".", "、": ", ", "，": ", ", "：": ": ", "；": "; ", "（": "(", "）": ")", "【": "[", "】": "]",
    "「": '"', "」": '"', "『": '"', "』": '"', "？": "? ", "！": "! ", "＝": "=", "＋": "+", "－": "-", "～": "~",
    "［": "[", "］": "]", "％": "%",
    "٫": ".", "٬": ",", "،": ", ", "؛": "; ", "।": ". ", "＄": "$", "／": "/",
    "\u2011": "-", "\u200e": "", "\u200f": "",
    "\u200b": "", "\ufeff": "",
    **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    **{chr(start + digit): str(digit) for start in (0x660, 0x6F0, 0x966, 0x9E6, 0xE50) for digit in range(10)},
    **{chr(0xFF21 + place): chr(65 + place) for place in range(26)},
    **{chr(0xFF41 + place): chr(97 + place) for place in range(26)},
})  # fmt: skip
LOOKALIKES = str.maketrans("АВСЕНКМОРТХавсеΑΒΕΗ", "ABCEHKMOPTXabceABEH")  # Cyrillic and Greek letters like Latin ones

STATEMENT = re.compile(
    rf"(?:(?:{ANSWER})(?:\s*{ADJECTIVE})*|(?:{OPTION})(?:\s*{ADJECTIVE})+|(?:{RIGHT_KIND})\s+(?:{OPTION}))\**\s*"
    rf"(?:(?:{IS})(?:\s*:\s*|\s+|(?<=[^A-Za-z]))|(?=(?:{NOT}))"
    rf"|(?=\(?[A-Z]\b))(?:\s*{ADJECTIVE})*[\s:]*(?P<rest>[^\n]{{1,400}})"
)


def western(text: str) -> str:
    """Write the digits and punctuation of other scripts as ASCII; superscripts and fractions stay."""
    return text if text.isascii() else text.translate(MARKS)
