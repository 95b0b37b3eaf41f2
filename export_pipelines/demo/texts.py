"""Sentences that the knowledge base's texts are made of: six languages, and all that breaks careless CSV."""

from __future__ import annotations

from random import Random

SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "Applications are decided within thirty days of their arrival.",
        'The form asks for a "registered address", which may differ from the place of residence.',
        "Fees are 12.50 € for adults, 6,25 € for pupils, and nothing for children under seven.",
        "If a document is missing, the office writes to you; the period starts again when it has arrived.",
        "A permit can be extended twice, each time by two years, provided that the conditions still hold.",
        "Questions are answered on working days between 9.00 and 16.30, by telephone or in the office.",
    ),
    "et": (
        "Taotlus vaadatakse läbi kolmekümne päeva jooksul alates selle saabumisest.",
        "Riigilõiv tuleb tasuda enne avalduse esitamist; summa sõltub menetluse liigist.",
        "Õppetoetuse määramisel arvestatakse õpilase elukohta ja perekonna sissetulekut.",
        "Ametnik küsib täiendavaid tõendeid üksnes juhul, kui andmed puuduvad registrist.",
        "Otsuse peale võib esitada vaide ühe kuu jooksul „teadasaamise päevast“ arvates.",
    ),
    "ru": (
        "Заявление рассматривается в течение тридцати дней со дня поступления.",
        "Государственная пошлина уплачивается до подачи заявления.",
        "Справку можно получить в электронном виде или «лично» в бюро обслуживания.",
        "Если сведения изменились, об этом следует сообщить не позднее пяти рабочих дней.",
    ),
    "ar": (
        "يُنظر في الطلب خلال ثلاثين يومًا من تاريخ وصوله.",
        "تُدفع الرسوم قبل تقديم الطلب، ويمكن الدفع عبر الإنترنت.",
        "يرجى إرفاق نسخة من جواز السفر وصورة شخصية حديثة.",
    ),
    "zh": (
        "申请将在收到之日起三十天内作出决定。",
        "提交申请之前须缴纳费用,可以在网上支付。",
        "如资料不全,我们会以书面形式通知您补交。",
    ),
    "raw": (
        "Name\tPlace\tOpen\nMain office\tTallinn\t9–17\nBranch\tTartu\t10–15",
        "Files lie in C:\\shared\\new\\templates, copies in \\\\server\\archive$\\2024.",
        'One cell: "He said ""no"", then left", 1,000.5, , NULL, \\N, ""',
        "\\.",
        "  indented by two, ends in a blank \r\nand a line end of Windows\r\n",
        "Good news 🎉👩🏽‍💻🇪🇪 – see § 12 (3) ½ ≤ ﷽, e\u0301 is not é, zero\u200bwidth.",
        "SELECT name FROM t WHERE name LIKE '%100 %%' AND id = %(id)s; -- {braces} $1 $$",
    ),
}

_SHARES = {"en": 34, "et": 34, "ru": 14, "ar": 5, "zh": 5, "raw": 8}


class Writer:
    """Writes texts from a pool of paragraphs which it makes first. The same `rng` gives the same texts."""

    def __init__(self, rng: Random, paragraphs: int = 500) -> None:
        self._rng = rng
        languages = rng.choices(list(_SHARES), list(_SHARES.values()), k=paragraphs)
        self._pool = [self._paragraph(language) for language in languages]

    def text(self, paragraphs: int) -> str:
        """So many paragraphs (of 40 to 500 characters each), with an empty line between two."""
        return "\n\n".join(self._rng.choices(self._pool, k=paragraphs))

    def title(self) -> str:
        """One sentence."""
        return self._rng.choice(SENTENCES[self._rng.choice(("en", "et", "et", "ru", "zh"))])

    def _paragraph(self, language: str) -> str:
        if language == "raw":
            return self._rng.choice(SENTENCES["raw"])
        sentences = SENTENCES[language]
        some = self._rng.sample(sentences, self._rng.randint(1, len(sentences)))
        return f"§ {self._rng.randint(1, 999)}. {' '.join(some)}"
