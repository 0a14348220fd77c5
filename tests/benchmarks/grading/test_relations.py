"""Equations, inequalities and intervals in two forms; both directions give the same result."""

from lowtax.benchmarks.grading import reals, relations

PAIRS = r"""
x>3 ; (3,\infty) ; equal
x\in(3,+\infty) ; x>3 ; equal
7\ge x\ge-2 ; -2\le x\le7 ; equal
x\in[-2,7] ; -2\le x\le7 ; equal
x>3,x<-3 ; (-\infty,-3)\cup(3,\infty) ; equal
x>3,x<5 ; (3,5) ; equal
2x+4y-3=0 ; y=-\frac12x+\frac34 ; equal
2x+3y=6 ; 2x+3y=7 ; unequal
xy=2 ; y=\frac{2}{x} ; equal
x^2<9 ; (-3,3) ; equal
x^2<9 ; (-3,3] ; unequal
x^2\le 9 ; [-3,3] ; equal
|x|<3 ; -3<x<3 ; equal
|x-1|\ge2 ; (-\infty,-1]\cup[3,\infty) ; equal
x\ne 2 ; (-\infty,2)\cup(2,\infty) ; equal
(-\infty ,\infty )\setminus\{2\} ; (-\infty,2)\cup(2,\infty) ; equal
y>2x+1 ; 2x-y<-1 ; equal
y>2x+1 ; y<2x+1 ; unequal
m\ge\sqrt2 ; [\sqrt2,\infty) ; equal
x>3 ; y>3 ; unequal
x>=2 ; [2,\infty) ; equal
(2,3) ; (3,4) ; unequal
0<x<5 ; 0<x<6 ; unequal
\{x\mid x>3\} ; (3,\infty) ; equal
(x-1)^2+(y-2)^2=9 ; x^2+y^2-2x-4y-4=0 ; equal
a<x<b ; b>x>a ; equal
(1,2)\cup(2,3) ; (1,3) ; unequal
(1,2]\cup(2,3) ; (1,3) ; equal
y=x^2 ; y=x^3 ; unequal
x^2<5 ; (-\sqrt5,\sqrt{5}) ; equal
x^2<5 ; [-\sqrt5,\sqrt{5}] ; unequal
x=y ; y=x ; equal
x=1 ; (1,2) ; neither
2x>6 ; x>3 ; equal
-2x>6 ; x<-3 ; equal
-2x>6 ; x>-3 ; unequal
(-1,2) ; x^2-x-2<0 ; equal
0\le x<2\pi ; [0,2\pi) ; equal
"""
WORD = {True: "equal", False: "unequal", None: "neither"}


def test_pairs_of_relations():
    rows = [line.split(" ; ") for line in PAIRS.strip().split("\n")]
    assert [row for row in rows if WORD[relations.same(row[0], row[1])] != row[2]] == []
    assert [row for row in rows if WORD[relations.same(row[1], row[0])] != row[2]] == []


def test_sets_of_numbers_are_joined_and_cut():
    assert reals.reals("(1,2]\\cup(2,3)") is not None
    assert len(reals.reals("(1,2)\\cup(2,3)").intervals) == 2
    assert relations.same("(1,2]\\cup(2,3)", "(1,3)")
    assert not relations.same("(1,2)\\cup(2,3)", "(1,3)")
    assert reals.reals("x+1") is None
    assert reals.reals("a<x<b") is None
