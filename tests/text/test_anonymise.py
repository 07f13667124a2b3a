"""Names and numbers that lead to a person are replaced; years, prices, dates and times stay."""

import time

import pytest

from npgpt.text.anonymise import Anonymiser

REPLACED = {  # what is replaced as a whole: the text, and the stand-in
    "11 91234-5678": "phone", "(11) 91234-5678": "phone", "(11)91234.5678": "phone", "11912345678": "phone",
    "+55 11 91234\u20115678": "phone", "5511912345678": "phone", "(+55) 11 91234-5678": "phone",
    "011 3333 4444": "phone", "(21) 3333-4444": "phone", "3333-4444": "phone", "91234 5678": "phone",
    "912 345 678": "phone", "+351 912 345 678": "phone", "06 12 34 56 78": "phone", "0800 123 4567": "phone",
    "+1 (555) 123-4567": "phone", "(555) 123-4567": "phone", "555-123-4567": "phone",
    "0044 20 7946 0958": "phone",
    "joao.silva+x@mail.example.com.br": "email",
    "https://example.com/a/b?id=3": "link", "www.example.com/joao": "link",
    "instagram.com/joao.silva": "link",
    "https://user:word@example.com": "link", "wa.me/5511912345678": "link",
    "529.982.247-25": "CPF", "52998224725": "CPF", "529982247-25": "CPF",
    "11.222.333/0001-81": "CNPJ", "11222333000181": "CNPJ", "12.ABC.345/01DE-35": "CNPJ",
    "1234 5678 9012 3456": "number", "12.345.678-9": "number", "01310-100": "number", "123456-7": "number",
    "1234567": "number", "12345678901": "number", "123e4567-e89b-12d3-a456-426614174000": "number",
}  # fmt: skip
STAYS = [
    "em 1998, 2019-2020 e 2023", "14:30, 14h30, 14:30-15:30, 02:05:33", "12/03/2023, 2023-03-12, 1.4.23",
    "R$ 1.234.567,89 e R$50", "1500-2000 reais", "US$ 12345678", "2.500.000 dólares", "€ 3000-4000",
    "3,14159265", "1.234.567 pessoas", "2000-3000", "190, 33 anos, 100000", "www.example.com e http://example.com/.",
    "e/ou, km/h, etc./ou", "2 x 1", "capítulo 12.5", "10 2000", "versão 1.2.3", "50 mil",
]  # fmt: skip


@pytest.mark.parametrize("text", REPLACED)
@pytest.mark.parametrize("around", ["{}", "é {}.", "tel:{}, sim", "({}) ou", "{}\n{}"])
def test_what_leads_to_a_person_is_replaced(text, around):
    own = Anonymiser([])
    assert own.text(around.format(text, text)) == around.format(*[f"[{REPLACED[text]} 1]"] * 2)
    assert own.replaced.total() == around.count("{")


@pytest.mark.parametrize("text", STAYS)
def test_years_prices_dates_and_times_stay(text):
    own = Anonymiser(["Ana"])
    assert own.text(text) == text and not own.replaced


def test_one_number_has_one_stand_in():
    own = Anonymiser([])
    same = ["11 91234-5678", "+55 11 91234-5678", "(011) 91234 5678", "5511912345678"]
    assert {own.text(text) for text in same} == {"[phone 1]"}
    assert own.text("a@b.com A@B.com c@b.com 11 91234-5679") == "[email 1] [email 1] [email 2] [phone 2]"
    assert own.replaced == {"telephones": 5, "e-mail addresses": 3}


PEOPLE = [
    "João Silva",
    "João Costa",
    "Ana 💖",
    "Mãe",
    "Rosa",
    "Li",
    "Will Smith",
    "Tia Bia",
    "Zé  Lima",
    "+55 11 90000-0000",
]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("João Silva: oi", "[person 1]: oi"),
        ("JOAO SILVA, joão silva, Joa\u0303o Silva", "[person 1], [person 1], [person 1]"),
        ("joao", "[person 1]"),  # of two, so it is a name of its own
        ("Silva e Costa na costa", "[person 1] e [person 2] na costa"),
        ("Ana: oi ana, banana, Anata, _Ana_", "[person 1]: oi [person 1], banana, Anata, _[person 1]_"),
        ("Mãe: minha mãe", "[person 1]: minha mãe"),
        ("rosa: a rosa da Rosa", "[person 1]: a rosa da [person 1]"),
        ("@rosa li o Li", "@[person 1] li o [person 2]"),
        ("will Will, Smith's", "will [person 1], [person 1]'s"),
        ("tia bia e a tia", "[person 1] e a tia"),
        ("a Bia foi", "a [person 1] foi"),
        ("Zé Lima, zé\tlima", "[person 1], [person 1]"),
        ("+55 11 90000-0000: oi", "[phone 1]: oi"),
        ("ana.b@example.com", "[email 1]"),
        ("Maria e josé", "Maria e josé"),
    ],
)
def test_names_of_a_chat_are_replaced_where_they_are_called(text, expected):
    assert Anonymiser(PEOPLE).text(text) == expected


def test_a_document_in_parts_is_one():
    text = "Ana: liga 11 91234-5678\nsem \xff fim 91234-5678"
    data = text.encode("latin-1")
    for size in (1, 3, 7, 1000):
        own = Anonymiser(["Ana"])
        found = b"".join(own.chunks(data[i : i + size] for i in range(0, len(data), size)))
        assert found == b"[person 1]: liga [phone 1]\nsem \xff fim [phone 2]"


@pytest.mark.parametrize(
    "unit",
    ["a", "a.", "a@", "1", "1.", "1,234", "12 ", "http://", "(", "@", "ab-", "R$1", "Ana", "00", "+1 "],
)
def test_no_text_takes_long(unit):
    text = unit * (200_000 // len(unit))
    begin = time.process_time()
    Anonymiser(["Ana", "Aa"]).text(text)
    assert time.process_time() - begin < 5
