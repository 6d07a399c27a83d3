"""The drawn head that `portrait.py` puts features on: who it is, how the picture is taken, and where points fall.

Coordinates of the picture: x to the right and y down, -1 to 1. Coordinates of the head: u to the right and v down, in
units of its half width and half height; a point of the face lies on an ellipsoid, so that a turn of the head moves what
is near (the nose) more than what is far (the ears), as in a photograph.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Colour = tuple[int, int, int]

EXPRESSIONS = ("neutral", "smiling", "surprised")
HAIR_STYLES = ("bald", "cropped", "parted", "fringe", "long", "curly", "bun")

SKIN = np.array([[255, 226, 202], [242, 200, 168], [222, 172, 132], [176, 122, 84], [126, 80, 54], [92, 58, 42]])
HAIR = np.array(
    [[26, 22, 22], [58, 38, 28], [98, 62, 38], [150, 92, 48], [214, 172, 104], [170, 74, 36], [172, 170, 168]]
)
IRIS = np.array([[66, 42, 28], [112, 74, 40], [118, 112, 60], [74, 118, 84], [76, 124, 168], [116, 132, 144]])
LIPS = np.array([[206, 116, 108], [188, 92, 92], [170, 84, 76], [196, 72, 88]])

PERSON_NUMBERS = 32  # numbers in [0, 1) that make a person
SCENE_NUMBERS = 16  # and a picture of one


def between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def blend(palette_NC: np.ndarray, share: float) -> np.ndarray:
    """The colour at `share` (0 to 1) of the way along a palette."""
    stops = np.linspace(0, 1, len(palette_NC))
    return np.array([np.interp(share, stops, palette_NC[:, channel]) for channel in range(3)])


def pick(palette_NC: np.ndarray, share: float) -> np.ndarray:
    """One of the colours of a palette."""
    return palette_NC[min(int(share * len(palette_NC)), len(palette_NC) - 1)].astype(float)


def ink(colour: np.ndarray, factor: float = 1.0) -> Colour:
    """A colour for Pillow, made darker (`factor` below 1) or lighter."""
    red, green, blue = np.clip(np.asarray(colour) * factor, 0, 255).astype(int).tolist()
    return red, green, blue


@dataclass(frozen=True)
class Person:
    """What stays the same in all pictures of one person. Lengths in units of the head."""

    width: float
    height: float
    jaw: float  # 0 round to 1 pointed
    skin: np.ndarray
    hair: np.ndarray
    hair_style: str
    hairline: float
    volume: float
    iris: np.ndarray
    eye_distance: float
    eye_size: float
    eye_slant: float
    eye_level: float
    brow_thickness: float
    brow_arch: float
    brow_gap: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_level: float
    lips: np.ndarray
    lip_thickness: float
    ear_size: float
    beard: float  # 0 none, to 1 full
    glasses: bool
    frame: np.ndarray
    freckles: bool
    mole: tuple[float, float] | None
    side: int  # of the parting

    @classmethod
    def of(cls, share_K: np.ndarray) -> "Person":
        """The person that PERSON_NUMBERS numbers in [0, 1) make."""
        s = share_K.tolist()
        skin = blend(SKIN, s[0]) + np.array([6, 0, -6]) * (s[1] - 0.5)
        hair = pick(HAIR, s[2]) * between(0.8, 1.2, s[3])
        lips = 0.55 * pick(LIPS, s[4]) * (skin.mean() / 215) ** 0.5 + 0.45 * skin * np.array([0.95, 0.78, 0.78])
        style = HAIR_STYLES[min(int(s[5] * len(HAIR_STYLES)), len(HAIR_STYLES) - 1)]
        long_hair = style in ("long", "bun", "fringe")
        return cls(
            width=between(0.43, 0.54, s[6]),
            height=between(0.58, 0.69, s[7]),
            jaw=s[8],
            skin=skin,
            hair=hair,
            hair_style=style,
            hairline=between(-0.72, -0.52, s[9]),
            volume=between(0.07, 0.17, s[10]),
            iris=pick(IRIS, s[11]) * between(0.85, 1.15, s[12]),
            eye_distance=between(0.37, 0.49, s[13]),
            eye_size=between(0.175, 0.235, s[14]),
            eye_slant=between(-0.035, 0.05, s[15]),
            eye_level=between(-0.15, -0.05, s[16]),
            brow_thickness=between(0.022, 0.06, s[17]),
            brow_arch=between(0.0, 0.075, s[18]),
            brow_gap=between(0.14, 0.2, s[19]),
            nose_length=between(0.34, 0.48, s[20]),
            nose_width=between(0.12, 0.21, s[21]),
            mouth_width=between(0.3, 0.42, s[22]),
            mouth_level=between(0.5, 0.58, s[23]),
            lips=lips,
            lip_thickness=between(0.03, 0.072, s[24]),
            ear_size=between(0.13, 0.19, s[25]),
            beard=max(0.0, 2.2 * s[26] - 1.2) if not long_hair else 0.0,
            glasses=s[27] < 0.22,
            frame=pick(np.array([[30, 30, 34], [110, 40, 32], [34, 54, 96], [150, 120, 70]]), s[28]),
            freckles=s[29] < 0.18 and skin.mean() > 150,
            mole=(between(-0.6, 0.6, s[30]), between(0.1, 0.75, s[31])) if s[30] > 0.6 else None,
            side=1 if s[31] < 0.5 else -1,
        )


@dataclass(frozen=True)
class Scene:
    """What changes from picture to picture of one person."""

    expression: str
    intensity: float  # of the expression, 0.7 to 1
    yaw: float  # degrees, positive turns the face to the picture's right
    pitch: float  # degrees, positive looks down
    roll: float  # degrees, positive leans clockwise
    zoom: float
    shift: tuple[float, float]
    gaze: float
    light: float  # where it comes from: -1 left to 1 right
    brightness: float
    warmth: float  # -1 cold to 1 warm
    backdrop: tuple[np.ndarray, np.ndarray]
    clothes: np.ndarray

    @classmethod
    def of(cls, share_K: np.ndarray, expression: str, pose: float, light: float) -> "Scene":
        """The scene of SCENE_NUMBERS numbers in [0, 1); `pose` and `light` (0 to 1) scale how far these two vary."""
        s = share_K.tolist()
        hue = np.array([between(90, 215, s[9]), between(90, 215, s[10]), between(90, 215, s[11])])
        backdrop = 0.55 * hue + 0.45 * hue.mean()
        return cls(
            expression=expression,
            intensity=between(0.7, 1.0, s[0]),
            yaw=pose * between(-30, 30, s[1]),
            pitch=pose * between(-10, 10, s[2]),
            roll=pose * between(-8, 8, s[3]),
            zoom=between(1.2, 1.32, s[4]),
            shift=(pose * between(-0.05, 0.05, s[5]), pose * between(-0.04, 0.04, s[6])),
            gaze=between(-1, 1, s[7]),
            light=light * between(-1, 1, s[8]),
            brightness=1 - light * between(0, 0.2, s[12]),
            warmth=light * between(-1, 1, s[13]),
            backdrop=(backdrop * 1.08, backdrop * 0.72),
            clothes=np.array([between(40, 210, s[14]), between(50, 190, s[15]), between(40, 210, 1 - s[14])]),
        )


class Head:
    """Where points of one person's head fall in one picture."""

    def __init__(self, person: Person, scene: Scene) -> None:
        self.person, self.scene = person, scene
        self.depth = 0.9 * person.width
        self.centre = np.array([scene.shift[0], scene.shift[1] + 0.02])
        yaw, pitch, roll = np.radians([scene.yaw, scene.pitch, scene.roll])
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
        lean = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
        self.matrix = lean @ nod @ turn

    def solid(self, point_N3: np.ndarray) -> np.ndarray:
        """Points (u, v, w) of space, w toward the camera, all in units of the head -> points (x, y) of the picture."""
        scale = np.array([self.person.width, self.person.height, self.depth]) * self.scene.zoom
        return (point_N3 * scale) @ self.matrix.T[:, :2] + self.centre

    def face(self, point_N2: np.ndarray, lift: float = 0.0) -> np.ndarray:
        """Points (u, v) of the face's surface, raised by `lift`, -> points (x, y) of the picture."""
        depth_N = np.sqrt(np.clip(1 - (np.asarray(point_N2) ** 2).sum(1), 0, None)) + lift
        return self.solid(np.column_stack([point_N2, depth_N]))

    def outline(self, grow: float = 0.0, start: float = 0.0, end: float = 2 * np.pi) -> np.ndarray:
        """The head's contour (x, y) from angle `start` to `end`, clockwise from its right, `grow` larger all around."""
        angle_N = np.linspace(start, end, 97)
        u_N, v_N = np.cos(angle_N), np.sin(angle_N)
        low_N, high_N = np.clip(v_N, 0, None), np.clip(-v_N, 0, None)
        u_N = u_N * (1 - between(0.1, 0.28, self.person.jaw) * low_N**2 + 0.06 * high_N)
        yaw = np.radians(self.scene.yaw)  # a turned ellipsoid shows its depth
        u_N = u_N * np.hypot(np.cos(yaw), np.sin(yaw) * self.depth / self.person.width) / np.cos(yaw)
        w_N = 0.4 * low_N**2  # the chin is nearer than the ears
        return self.solid(np.column_stack([u_N * (1 + grow), v_N * (1 + grow), w_N]))

    def light(self, cells: int) -> np.ndarray:
        """Light on the head, float (cells, cells, 3) in [0, 1]: Lambert's law on the ellipsoid, with soft shadows."""
        scene, person = self.scene, self.person
        y_HW, x_HW = (np.mgrid[0:cells, 0:cells] + 0.5) / cells * 2 - 1
        roll = np.radians(scene.roll)
        lean = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        half = np.array([person.width, person.height]) * 1.12 * scene.zoom
        point_HW2 = (np.stack([x_HW, y_HW], axis=-1) - self.centre) @ lean / half
        radius_HW1 = np.maximum(np.linalg.norm(point_HW2, axis=-1, keepdims=True), 1e-6)
        point_HW2 *= np.minimum(radius_HW1, 0.94) / radius_HW1  # beyond the head as at its rim
        depth_HW1 = np.sqrt(1 - (point_HW2**2).sum(-1, keepdims=True))
        normal_HW3 = np.concatenate([point_HW2 * np.array([1, 0.7]), depth_HW1], axis=-1)
        normal_HW3 /= np.linalg.norm(normal_HW3, axis=-1, keepdims=True)
        lamp = np.array([1.15 * scene.light, -0.42, 0.95])
        lambert_HW = np.clip(normal_HW3 @ (lamp / np.linalg.norm(lamp)), 0, None)
        tint = 1 + 0.06 * scene.warmth * np.array([1.0, 0.1, -1.0])
        shade_HW3 = ((0.46 + 0.56 * lambert_HW) * scene.brightness)[..., None] * tint
        for spot in self._shadows():
            x, y = self.face(np.array([[spot.u, spot.v]]), spot.lift)[0]
            wide, high = spot.half[0] * person.width, spot.half[1] * person.height
            distance_HW = ((x_HW - x) / wide) ** 2 + ((y_HW - y) / high) ** 2
            shade_HW3 *= 1 - np.exp(-distance_HW)[..., None] * np.array(spot.taken)
        return np.clip(shade_HW3, 0, 1)

    def _shadows(self) -> list["Spot"]:
        """Sockets of the eyes, red of the cheeks, the nose's shadow away from the light, lower lip, neck."""
        person, scene = self.person, self.scene
        tip, cast = person.eye_level + person.nose_length, 0.17 * abs(scene.light)
        away = -1 if scene.light > 0 else 1
        spots = [
            Spot(0.1 * away, tip - 0.08, 0.12, (0.08, 0.2), (cast, cast, cast)),
            Spot(0.0, tip + 0.07, 0.1, (0.17, 0.05), (0.13, 0.16, 0.16)),
            Spot(0.0, person.mouth_level + 0.15, 0.0, (0.17, 0.045), (0.1, 0.12, 0.12)),
            Spot(0.0, 1.0, 0.0, (0.62, 0.2), (0.3, 0.32, 0.32)),
        ]
        for side in (1, -1):
            eye = (side * person.eye_distance, person.eye_level - 0.03)
            spots.append(Spot(*eye, 0.0, (0.2, 0.11), (0.1, 0.12, 0.13)))
            spots.append(Spot(side * 0.5, 0.3, 0.0, (0.2, 0.15), (0.0, 0.1, 0.09)))
        return spots


class Spot(NamedTuple):
    """A soft dark place on the face."""

    u: float
    v: float
    lift: float
    half: tuple[float, float]  # half width and height
    taken: tuple[float, float, float]  # how much of red, green and blue light it takes in its middle
