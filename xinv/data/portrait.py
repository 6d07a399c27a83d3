"""Drawing a face: a person (`head.Person`) in a scene (`head.Scene`) as an RGB picture of any size.

Shapes are filled polygons on a canvas some times larger than the picture, which smooths their edges when it is reduced;
the light is a small field of numbers, enlarged smoothly and multiplied on. Nothing here is random: equal people and
scenes give equal pictures (Pillow and numpy versions equal).
"""

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from xinv.data.head import Colour, Head, Person, Scene, ink

LIGHT_CELLS = 96  # side of the field of light, at most


def draw(person: Person, scene: Scene, size: int) -> np.ndarray:
    """image_HWC uint8 (size, size, 3)."""
    finer = 4 if size <= 96 else 3 if size <= 384 else 2
    head = Head(person, scene)
    pen = Pen(size * finer, scene)
    pen_hair_behind(pen, head)
    pen_body(pen, head)
    pen_head(pen, head)
    pen_nose(pen, head)
    pen_beard(pen, head)
    pen_mouth(pen, head)
    pen_eyes(pen, head)
    pen_brows(pen, head)
    pen_hair(pen, head)
    pen_glasses(pen, head)
    paint, mask = pen.paint.reduce(finer), pen.mask.reduce(finer)
    light = Image.fromarray((head.light(min(size, LIGHT_CELLS)) * 255).round().astype(np.uint8))
    light = light.resize((size, size), Image.Resampling.BICUBIC)
    light = Image.composite(light, Image.new("RGB", (size, size), (255, 255, 255)), mask)
    return np.asarray(ImageChops.multiply(paint, light))


class Pen:
    """A canvas with the backdrop on it, and a mask of what was drawn before the backdrop."""

    def __init__(self, side: int, scene: Scene) -> None:
        self.side = side
        near, far = scene.backdrop
        y_HW, x_HW = (np.mgrid[0:64, 0:64] + 0.5) / 64
        share_HW = np.clip(1 - 0.75 * y_HW + 0.7 * scene.light * (x_HW - 0.5), 0, 1)[..., None]
        backdrop = Image.fromarray((near * share_HW + far * (1 - share_HW)).clip(0, 255).astype(np.uint8))
        self.paint = backdrop.resize((side, side), Image.Resampling.BICUBIC)
        self.mask = Image.new("L", (side, side), 0)
        self._paint, self._mask = ImageDraw.Draw(self.paint), ImageDraw.Draw(self.mask)

    def _pixels(self, point_N2: np.ndarray) -> list[tuple[float, float]]:
        return [(x, y) for x, y in ((point_N2 + 1) * (self.side / 2)).tolist()]

    def fill(self, point_N2: np.ndarray, colour: Colour) -> None:
        """A filled polygon."""
        pixels = self._pixels(point_N2)
        self._paint.polygon(pixels, fill=colour)
        self._mask.polygon(pixels, fill=255)

    def line(self, point_N2: np.ndarray, width: float, colour: Colour) -> None:
        """An open line, `width` in units of the picture."""
        pixels, thick = self._pixels(point_N2), max(1, round(width * self.side / 2))
        self._paint.line(pixels, fill=colour, width=thick, joint="curve")
        self._mask.line(pixels, fill=255, width=thick, joint="curve")

    def disc(self, centre_2: np.ndarray, radius: float, colour: Colour) -> None:
        self.fill(centre_2 + radius * ring(1, 1, 24), colour)


def ring(wide: float, high: float, count: int = 48) -> np.ndarray:
    """An ellipse around 0, (count, 2)."""
    angle_N = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.column_stack([wide * np.cos(angle_N), high * np.sin(angle_N)])


def arc(left: float, right: float, ends: float, bend: float, count: int = 33) -> np.ndarray:
    """A parabola from (left, ends) to (right, ends) that reaches ends + bend in the middle, (count, 2)."""
    step_N = np.linspace(-1, 1, count)
    u_N = (left + right) / 2 + (right - left) / 2 * step_N
    return np.column_stack([u_N, ends + bend * (1 - step_N**2)])


def pen_body(pen: Pen, head: Head) -> None:
    person, clothes = head.person, head.scene.clothes
    x, y = head.centre
    wide, chin = person.width, y + person.height * head.scene.zoom
    skin = ink(person.skin, 0.9)
    pen.fill(
        np.array(
            [
                [x - 0.54 * wide, chin - 0.4],
                [x + 0.54 * wide, chin - 0.4],
                [x + 0.62 * wide, 1.0],
                [x - 0.62 * wide, 1.0],
            ]
        ),
        skin,
    )
    shoulder = np.linspace(0, 1, 25)
    right = np.column_stack([x + 0.58 * wide + shoulder * 0.85, chin + 0.06 + 0.3 * shoulder**2 + 0.05 * shoulder])
    left = np.column_stack([2 * x - right[::-1, 0], right[::-1, 1]])
    collar = arc(left[-1, 0], right[0, 0], chin + 0.06, 0.13)
    bottom = np.array([[right[-1, 0], 1.4], [left[0, 0], 1.4]])
    pen.fill(np.concatenate([collar, right, bottom, left]), ink(clothes))
    pen.line(collar, 0.035, ink(clothes, 0.78))


def pen_head(pen: Pen, head: Head) -> None:
    """The bare head: the ear on the far side is half hidden by it, the one on the near side lies on it."""
    person, turn = head.person, head.scene.yaw / 30
    near = -1 if turn > 0 else 1
    pen_ear(pen, head, -near, 0.85 - 0.5 * abs(turn))
    pen.fill(head.outline(), ink(person.skin))
    pen_ear(pen, head, near, 0.85 + 0.1 * abs(turn))
    if person.freckles:
        for number in range(26):
            u, v = 0.62 * np.sin(number * 2.4) * (0.35 + number % 5 / 7), 0.2 + 0.16 * np.cos(number * 1.7)
            pen.disc(head.face(np.array([[u, v]]))[0], 0.0075, ink(person.skin * np.array([0.86, 0.76, 0.7])))
    if person.mole:
        pen.disc(head.face(np.array([person.mole]))[0], 0.014, ink(person.skin, 0.45))


def pen_ear(pen: Pen, head: Head, side: int, wide: float) -> None:
    person = head.person
    centre = head.solid(np.array([[side * 0.985, person.eye_level + 0.15, 0.0]]))[0]
    ear = ring(person.ear_size * wide * 0.6, person.ear_size) * person.height
    pen.fill(centre + ear, ink(person.skin, 0.92))
    pen.fill(centre + ear * 0.58, ink(person.skin, 0.78))


def pen_nose(pen: Pen, head: Head) -> None:
    person, turn = head.person, head.scene.yaw / 30
    top, tip, wide = person.eye_level + 0.02, person.eye_level + person.nose_length, person.nose_width
    far = 1 if turn > 0 else -1
    bridge = np.array([[far * 0.07, top], [far * 0.06, top + 0.4 * (tip - top)], [far * wide * 0.72, tip - 0.05]])
    pen.line(_smooth(head.face(bridge, 0.14)), 0.008 + 0.012 * abs(turn), ink(person.skin, 0.86))
    ball = head.face(np.array([[0.0, tip - 0.045]]), 0.24)[0]
    pen.fill(ball + ring(wide * 0.95, 0.085) * np.array([person.width, person.height]), ink(person.skin, 0.965))
    for side in (1, -1):
        wing = head.face(np.array([[side * wide * 0.8, tip - 0.03]]), 0.12)[0]
        pen.fill(wing + ring(wide * 0.36, 0.05) * np.array([person.width, person.height]), ink(person.skin, 0.92))
        hole = head.face(np.array([[side * wide * 0.45, tip + 0.008]]), 0.18)[0]
        pen.fill(hole + ring(wide * 0.27, 0.02) * np.array([person.width, person.height]), ink(person.skin, 0.42))
    shine = head.face(np.array([[0.03 * head.scene.light, tip - 0.075]]), 0.28)[0]
    pen.fill(shine + ring(wide * 0.28, 0.026) * np.array([person.width, person.height]), ink(person.skin, 1.09))


def pen_mouth(pen: Pen, head: Head) -> None:
    """Lips between three curves: upper edge, the two sides of the opening, lower edge."""
    person, force = head.person, head.scene.intensity
    smile = force if head.scene.expression == "smiling" else 0.0
    gasp = force if head.scene.expression == "surprised" else 0.0
    wide = person.mouth_width * (1 + 0.28 * smile - 0.35 * gasp)
    level = person.mouth_level - 0.055 * smile + 0.05 * gasp
    sag = 0.012 + 0.12 * smile  # how far the middle hangs below the corners
    thick = person.lip_thickness * (1 - 0.2 * smile)
    inner_top, inner_low = sag - 0.13 * gasp, sag + 0.085 * max(0.0, smile - 0.6) / 0.4 + 0.15 * gasp
    upper = arc(-wide, wide, level, inner_top - 1.15 * thick)
    u_N = upper[:, 0] / wide
    upper[:, 1] += 0.35 * thick * np.exp(-((u_N / 0.16) ** 2))  # the bow of the upper lip
    top, low = arc(-wide, wide, level, inner_top), arc(-wide, wide, level, inner_low)
    lower = arc(-wide * 0.94, wide * 0.94, level, inner_low + 1.5 * thick)
    place = lambda points: head.face(points, 0.06)  # noqa: E731 (one short name for one short thing)
    pen.fill(place(np.concatenate([upper, top[::-1]])), ink(person.lips, 0.9))
    pen.fill(place(np.concatenate([low, lower[::-1]])), ink(person.lips))
    if inner_low - inner_top > 0.02:
        pen.fill(place(np.concatenate([top, low[::-1]])), (70, 24, 26))
        teeth = (top + (0.7 if smile else 0.35) * (low - top))[3:-3]
        pen.fill(place(np.concatenate([top[3:-3], teeth[::-1]])), (242, 238, 230))
        if gasp:
            tongue = arc(-wide * 0.6, wide * 0.6, level + 0.6 * inner_low, 0.4 * inner_low)
            pen.fill(place(np.concatenate([tongue, low[6:-6][::-1]])), (176, 84, 84))
    pen.line(place(top), 0.009, ink(person.lips, 0.5))
    if smile:
        for side in (1, -1):
            fold = np.array(
                [[side * 0.26, 0.2], [side * (wide + 0.07), level - 0.1], [side * (wide + 0.07), level + 0.03]]
            )
            pen.line(_smooth(head.face(fold)), 0.009, ink(person.skin, 0.84))


def pen_eyes(pen: Pen, head: Head) -> None:
    person, scene = head.person, head.scene
    opening = {"neutral": 0.43, "smiling": 0.36 - 0.06 * scene.intensity, "surprised": 0.43 + 0.2 * scene.intensity}
    half, open_ = person.eye_size, person.eye_size * opening[scene.expression]
    raised = 0.35 if scene.expression == "smiling" else 0.0  # the lower lid of a smile is raised
    for side in (1, -1):
        centre = np.array([side * person.eye_distance, person.eye_level])
        upper, lower = arc(-half, half, 0, -1.15 * open_), arc(-half, half, 0, (0.85 - raised) * open_)

        def place(points: np.ndarray, centre: np.ndarray = centre, side: int = side) -> np.ndarray:
            slanted = points - np.array([0, 1]) * (side * points[:, :1] * person.eye_slant / half)
            return head.face(slanted + centre, 0.02)

        pen.fill(place(np.concatenate([upper, lower[::-1]])), (238, 236, 232))
        middle = np.array([0.16 * half * scene.gaze, -0.08 * open_])
        for radius, colour in ((0.47, ink(person.iris, 0.6)), (0.41, ink(person.iris, 1.15)), (0.2, (16, 12, 12))):
            disc = middle + ring(radius * half, radius * half * person.width / person.height)
            disc[:, 1] = np.clip(disc[:, 1], np.interp(disc[:, 0], *upper.T), np.interp(disc[:, 0], *lower.T))
            pen.fill(place(disc), colour)
        glint = place(middle[None] + np.array([[0.13 * half * (1 + scene.light), -0.14 * half]]))[0]
        pen.disc(glint, 0.055 * half, (250, 250, 250))
        pen.line(place(upper), 0.02, ink(person.skin * np.array([0.2, 0.18, 0.18])))
        pen.line(place(lower), 0.006, ink(person.skin, 0.62))
        crease = arc(-half * 0.95, half, -0.4 * open_, -1.15 * open_)
        pen.line(place(crease), 0.007, ink(person.skin, 0.76))


def pen_brows(pen: Pen, head: Head) -> None:
    person, scene = head.person, head.scene
    lift = 0.1 * scene.intensity if scene.expression == "surprised" else 0.015 if scene.expression == "smiling" else 0.0
    half = person.eye_size * 1.18
    for side in (1, -1):
        upper = arc(-half, half, 0, -person.brow_arch - person.brow_thickness)
        lower = arc(half, -half, 0, -person.brow_arch * 0.9)
        inward = np.concatenate([upper, lower]) * np.array([side, 1])
        points = inward + np.array([side * person.eye_distance * 1.02, person.eye_level - person.brow_gap - lift])
        points[:, 1] -= 0.12 * (np.abs(points[:, 0]) - person.eye_distance)  # the inner end is a little lower
        pen.fill(head.face(points, 0.03), ink(0.75 * person.hair + 0.1 * person.skin, 0.85))


def pen_hair_behind(pen: Pen, head: Head) -> None:
    """What is seen of the hair behind head and neck."""
    person = head.person
    dark = ink(person.hair, 0.72)
    if person.hair_style == "long":
        crown = head.outline(person.volume + 0.1, np.pi, 2 * np.pi)
        ends = crown[[-1, 0]] + np.array([[0.06, person.height * 1.25], [-0.06, person.height * 1.25]])
        pen.fill(np.concatenate([crown, ends]), dark)
    elif person.hair_style == "fringe":
        crown = head.outline(person.volume + 0.08, np.pi, 2 * np.pi)
        ends = crown[[-1, 0]] + np.array([[0.02, person.height * 0.72], [-0.02, person.height * 0.72]])
        pen.fill(np.concatenate([crown, ends]), dark)
    elif person.hair_style == "bun":
        top = head.solid(np.array([[0, -1.2, -0.35]]))[0]
        pen.disc(top, person.width * 0.42, dark)
    elif person.hair_style == "curly":
        for point in head.outline(person.volume + 0.12, 0.92 * np.pi, 2.08 * np.pi)[::6]:
            pen.disc(point, 0.13 + 0.3 * person.volume, dark)


def pen_hair(pen: Pen, head: Head) -> None:
    """The cap of hair in front: between a contour outside the head and the hairline on the forehead."""
    person = head.person
    if person.hair_style == "bald":
        return
    grow = {"cropped": 0.35, "curly": 1.1}.get(person.hair_style, 0.8) * person.volume
    low = 0.06 if person.hair_style in ("long", "fringe") else 0.0
    outside = head.outline(grow, np.pi * (1 - low), np.pi * (2 + low))
    hairline = head.face(_hairline(person))
    cap = np.concatenate([outside, hairline])
    pen.fill(cap, ink(person.hair))
    if person.hair_style == "curly":
        for place, point in enumerate(np.concatenate([outside[::5], hairline[4:-4:4]])):
            pen.disc(point, 0.075 + 0.02 * (place % 3), ink(person.hair, 0.92 + 0.08 * (place % 3)))
        return
    count = len(hairline)
    for number in range(3, 30):  # strands, from the contour to the hairline
        start = outside[round((0.04 + 0.92 * number / 32) * 96)]
        end = hairline[::-1][min(count - 1, round((0.08 + 0.84 * number / 32) * count))]
        middle = 0.5 * (start + end) + np.array([0.03 * person.side, -0.02])
        shade = 0.86 if number % 2 else 1.16
        pen.line(
            _smooth(np.array([start * 0.9 + end * 0.1, middle, end * 0.9 + start * 0.1])),
            0.006,
            ink(person.hair, shade),
        )


def _hairline(person: Person) -> np.ndarray:
    """Points (u, v) from the right temple over the forehead to the left one."""
    u_N = np.linspace(1, -1, 41)
    temple = {"long": 0.3, "fringe": 0.2, "cropped": -0.12}.get(person.hair_style, -0.02)
    if person.hair_style == "fringe":
        v_N = np.where(np.abs(u_N) < 0.8, -0.4, -0.4 + (np.abs(u_N) - 0.8) / 0.2 * (temple + 0.4))
        v_N = v_N + 0.02 * np.sin(24 * u_N)
    elif person.hair_style == "parted":
        v_N = person.hairline + 0.2 * np.clip(-person.side * u_N + 0.35, 0, None) ** 1.5 + 0.25 * np.abs(u_N) ** 6
    else:
        v_N = person.hairline + (temple - person.hairline) * np.abs(u_N) ** 2.6
    edge_N = np.sqrt(np.clip(1 - v_N**2, 0, None))
    return np.column_stack([np.clip(u_N * 1.05, -edge_N, edge_N), v_N])


def pen_beard(pen: Pen, head: Head) -> None:
    person = head.person
    if person.beard <= 0:
        return
    cover = min(0.9, 0.25 + 0.75 * person.beard)
    colour = ink(cover * person.hair * 0.95 + (1 - cover) * person.skin)
    jaw = head.outline(0.02 + 0.05 * person.beard, 0.06 * np.pi, 0.94 * np.pi)
    u_N = np.linspace(-0.93, 0.93, 61)
    out_N = np.abs(u_N)
    v_N = (
        person.mouth_level
        - 0.13
        + 0.1 * np.exp(-(((out_N - 0.5) / 0.15) ** 2))
        - 0.9 * np.clip(out_N - 0.6, 0, None) ** 1.4
    )
    pen.fill(np.concatenate([jaw, head.face(np.column_stack([u_N, v_N]))]), colour)


def pen_glasses(pen: Pen, head: Head) -> None:
    person = head.person
    if not person.glasses:
        return
    half = person.eye_size * 1.5
    colour = ink(person.frame)
    for side in (1, -1):
        rim = np.array([side * person.eye_distance, person.eye_level + 0.02]) + ring(half, half * 0.72, 49)
        closed = head.face(np.concatenate([rim, rim[:2]]), 0.1)
        pen.line(closed, 0.022, colour)
        arm = np.array(
            [[side * (person.eye_distance + half), person.eye_level, 0.55], [side * 1.02, person.eye_level + 0.05, 0.0]]
        )
        pen.line(head.solid(arm), 0.02, colour)
    inner = person.eye_distance - half
    pen.line(head.face(arc(-inner, inner, person.eye_level, -0.04), 0.16), 0.02, colour)


def _smooth(point_N2: np.ndarray, count: int = 17) -> np.ndarray:
    """A quadratic curve that begins and ends with three points' ends and bends toward the one between."""
    step = np.linspace(0, 1, count)[:, None]
    first, middle, last = point_N2
    return (1 - step) ** 2 * first + 2 * step * (1 - step) * middle + step**2 * last
