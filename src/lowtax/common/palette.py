"""Colours and marks of arms, equal in all figures and on the page of a study."""

# Okabe and Ito's colours, which any colour vision tells apart, without their yellow: it is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666")
MARKS = "osDv^P"
INK, GREY = "#222222", "#666666"
