"""The features of one sequence again, written from their definitions: scipy's rotations and plain loops over rows.

Slow on purpose."""
import numpy as np
from scipy.spatial.transform import Rotation

G = 9.80665


def filled(rows, good):
    """Readings with gaps closed: forward, then backward. Zeros if nothing is good."""
    out, last = [], None
    for x, ok in zip(rows, good):
        last = x if ok else last
        out.append(last)
    first = next((x for x in out if x is not None), np.zeros_like(rows[0]))
    return np.array([first if x is None else x for x in out], float), any(good)


def near_mean(x, memory):
    """Each row's mean of all rows, weighted by exp(-distance / memory)."""
    distance = np.abs(np.subtract.outer(np.arange(len(x)), np.arange(len(x))))
    return np.array([np.average(x, axis=0, weights=np.exp(-d / memory)) for d in distance])


def onto_z(v):
    if np.linalg.norm(v) == 0: return Rotation.identity()
    u = v / np.linalg.norm(v)
    axis, angle = np.cross(u, [0, 0, 1]), np.arccos(np.clip(u[2], -1, 1))
    if np.linalg.norm(axis) < 1e-12: return Rotation.identity() if u[2] > 0 else Rotation.from_rotvec([np.pi, 0, 0])
    return Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle)


def guessed(acc, gyr, has_gyr, linear, rate):
    turned = [Rotation.identity()]
    for i in range(1, len(acc)): turned.append(turned[-1] * Rotation.from_rotvec((gyr[i - 1] + gyr[i]) / 2 / rate))
    down = near_mean(np.array([r.apply(a) for r, a in zip(turned, acc)]), (3.0 if has_gyr else 0.7) * rate)
    if linear: down *= 0
    return [onto_z(d) * r for d, r in zip(down, turned)], np.linalg.norm(down, axis=1)


def motion(column, steps, rate):
    """name → values of one sequence. `column(name)` gives a channel, or None."""
    def sensor(names):
        parts = [column(c) for c in names]
        if all(p is None for p in parts): return np.zeros((steps, len(names))), False
        x = np.stack(parts, axis=1).astype(float)
        return filled(x, np.isfinite(x).all(axis=1) & (np.abs(x) < 1e4).all(axis=1))
    acc, _ = sensor(["acc_x", "acc_y", "acc_z"])
    gyr, has_gyr = sensor(["gyr_x", "gyr_y", "gyr_z"])
    linear = (np.linalg.norm(acc, axis=1) < 4).mean() > 1 / 8
    if column("rot_w") is not None:
        q = np.stack([column(f"rot_{a}") for a in "wxyz"], axis=1).astype(float)
        q, has_rot = filled(q, np.isfinite(q).all(axis=1) & (np.linalg.norm(np.nan_to_num(q), axis=1) > 1e-3))
    else: has_rot = False
    if has_rot:
        r = [Rotation.from_quat(x, scalar_first=True) for x in q]
        strength = np.full(steps, 0 if linear and np.mean([x.apply(a)[2] for x, a in zip(r, acc)]) < G / 2 else G)
    else: r, strength = guessed(acc, gyr, has_gyr, linear, rate)
    known = has_rot or has_gyr
    out = {}
    up = np.array([x.inv().apply([0, 0, 1]) for x in r])
    lin = acc - strength[:, None] * up
    world = np.array([x.apply(a) for x, a in zip(r, acc)]) - np.outer(strength, [0, 0, 1])
    jerk = np.array([lin[i] - lin[i - 1] if i else 0 * lin[0] for i in range(steps)]) * rate
    for k, a in enumerate("xyz"):
        out |= {f"acc.{a}": acc[:, k], f"motion.lin_{a}": lin[:, k], f"motion.jerk_{a}": jerk[:, k],
                f"motion.grav_{a}": up[:, k] * (strength > 0)}
    out |= {"acc.mag": np.linalg.norm(acc, axis=1), "motion.lin_mag": np.linalg.norm(lin, axis=1),
            "motion.jerk": np.linalg.norm(jerk, axis=1)}
    out |= {"motion.world_x": world[:, 0] * known, "motion.world_y": world[:, 1] * known,
            "motion.world_z": world[:, 2], "motion.world_h": np.hypot(world[:, 0], world[:, 1])}
    between = np.array([(r[i - 1].inv() * r[i]).as_rotvec() if i else np.zeros(3) for i in range(steps)])
    omega = gyr if has_gyr else between * rate * has_rot
    group = "gyr." if column("gyr_x") is not None else "motion.ang_"
    for k, a in enumerate("xyz"): out[group + a] = omega[:, k]
    out[group + "mag"] = np.linalg.norm(omega, axis=1)
    angle = np.linalg.norm(omega, axis=1) / rate
    angle[0] = 0
    away = np.array([(r[0].inv() * x).magnitude() for x in r])
    out |= {"motion.angle": angle, "motion.turned": np.array([angle[:i + 1].sum() for i in range(steps)]),
            "motion.away": known * away}
    quats = [x.as_quat(scalar_first=True) for x in r]
    for i, x in enumerate(quats):
        lead = x[np.flatnonzero(np.abs(x) > 1e-12)[0]]
        quats[i] = (np.sign(lead) if i == 0 else (1 if x @ quats[i - 1] >= 0 else -1)) * x
    for k, a in enumerate("wxyz"): out[f"rot.{a}"] = known * np.array(quats)[:, k]
    for i in range(3):
        for j in range(2): out[f"rot.r{i + 1}{j + 1}"] = known * np.array([x.as_matrix()[i, j] for x in r])
    return out, {"has_gyr": has_gyr, "has_rot": has_rot}


def thermal(column, steps, rate):
    level, has, out = {}, {}, {}
    for k in range(1, 6):
        x = column(f"thm_{k}")
        x = np.full(steps, np.nan) if x is None else x.astype(float)
        level[k], has[f"has_thm_{k}"] = filled(x, (np.nan_to_num(x) >= 20) & (np.nan_to_num(x) < 1000))
    for k in level:
        others = [level[j] for j in level if j != k and has[f"has_thm_{j}"]]
        out[f"thm.{k}"] = level[k]
        alone = not others or not has[f"has_thm_{k}"]
        out[f"thm.{k}_others"] = np.zeros(steps) if alone else level[k] - np.mean(others, axis=0)
        out[f"thm.{k}_rate"] = np.array([level[k][i] - level[k][i - 1] if i else 0 for i in range(steps)]) * rate
    return out, has


def flight(grid, steps, rate, far=255):
    """Features of one ToF sensor from its `[steps, 64]` readings."""
    names = ["mean", "std", "min", "max", "share", "cx", "cy", "change", "q11", "q12", "q21", "q22",
             *(f"n{i}{j}" for i in (1, 2, 3) for j in (1, 2, 3))]
    good = [not np.isnan(g).all() for g in grid]
    grid, has = filled(np.array(grid, float), good)
    out = {n: np.zeros(steps) for n in names}
    if not has: return out, False
    before = None
    for i in range(steps):
        g = grid[i].reshape(8, 8)
        d = np.where(np.isnan(g) | (g < 0), far, g)
        near = far - d
        out["mean"][i], out["std"][i], out["min"][i], out["max"][i] = d.mean(), d.std(), d.min(), d.max()
        out["share"][i] = (np.nan_to_num(g, nan=-1) >= 0).mean()
        place = (np.arange(8) - 3.5) / 3.5
        if near.sum():
            out["cx"][i] = (near * place).sum() / near.sum()
            out["cy"][i] = (near * place[:, None]).sum() / near.sum()
        out["change"][i] = 0 if before is None else np.abs(d - before).mean() * rate
        for a in (0, 1):
            for b in (0, 1): out[f"q{a + 1}{b + 1}"][i] = d[4 * a:4 * a + 4, 4 * b:4 * b + 4].mean()
        cut = [0, 3, 5, 8]
        for a in range(3):
            for b in range(3): out[f"n{a + 1}{b + 1}"][i] = d[cut[a]:cut[a + 1], cut[b]:cut[b + 1]].mean()
        before = d
    return out, True


def features(table, i, rate):
    """(name → values, masks) of sequence `i`."""
    part = table.values[:, table.offsets[i]:table.offsets[i + 1]]
    steps = part.shape[1]
    def column(name): return part[table.names.index(name)] if name in table.names else None
    out, has = motion(column, steps, rate)
    more, masks = thermal(column, steps, rate)
    out, has = out | more, has | masks
    for k in range(1, 6):
        if column(f"tof_{k}_v0") is None: continue
        grid = np.stack([column(f"tof_{k}_v{j}") for j in range(64)], axis=1)
        more, has[f"has_tof_{k}"] = flight(grid, steps, rate)
        out |= {f"tof.{k}_{n}": v for n, v in more.items()}
    return out, has
