"""Which names the font of a picture can show."""

from matplotlib.font_manager import FontProperties, findfont, get_font


def drawable_names(names):
    """Puts numbers in place of names that the font has no letters for.

    The font is that of matplotlib's settings: with one that has the letters, such as
    `matplotlib.rcParams["font.family"] = "Noto Sans CJK SC"`, all names are shown.

    Args:
        names: sequence of names, strings or ints.

    Returns:
        A list of strings; `"3"` for the fourth name if its letters are missing.

    Example:
    ```python
    from keras_bridle.evaluation.glyphs import drawable_names

    print(drawable_names(["cat", "\u72d7"]))  # ['cat', '1'], if the font lacks it
    ```
    """
    known = get_font(findfont(FontProperties())).get_charmap()
    return [
        str(name) if all(ord(letter) in known for letter in str(name)) else str(number)
        for number, name in enumerate(names)
    ]
