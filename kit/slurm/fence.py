"""One try of a job: its folder with three links, the scripts that ask, the answers as data.

A try is one submission. Its folder on the site holds links that are made once and never changed:
`submit` (who may call sbatch), `owner` (which start of which job may work, `<job>.<restart>`, or
`fenced`, `cancelled`) and `commit` (`manifest-<sha256>`: the result; or `closed`, `cancelled`).
`ln -sT VALUE NAME` followed by `readlink NAME` is the only primitive: it is atomic on a shared
file system, names the winner, and does no harm when it is sent twice. No I/O in this file.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from kit.base import DataError
from kit.slurm.text import QUEUE_FORMAT, SubmitReply, read_reply

TOKEN = re.compile(r"[0-9a-f]{12}")
CLOSED_OWNER = ("fenced", "cancelled")

# enter: a project folder that is not there is never made: it may be a disk that is not mounted.
# look: the links and replies of the tries named, with the server's time.
LOOK = r"""
umask 077
enter() {
    if [ -d "${1%/kit/tries*}" ]; then
        { [ -d "$1" ] || mkdir -p "$1"; } && cd "$1" && return
    fi
    echo "cannot use the folder $1" >&2; exit 74
}
look() {
    echo "@tries"
    (cd "$tries" && find "$@" -maxdepth 1 \( -type l -o -name reply \) \
        -printf '%h|%f|%T@|%l\n' 2>/dev/null
    cd "$tries" && grep -as '' /dev/null "${@/%//reply}")
    printf '@now %(%s)T\n'
}
"""

# $1 tries folder, $2 token, $3 seconds to wait for sbatch, $4 job script, then sbatch's argv.
# The value of `submit` is made here, in every call anew: a call that is sent twice is two callers.
# sbatch runs detached: it outlives this shell, ssh and the client, and its reply appears whole.
SUBMIT = r"""
tries=$1 token=$2 patience=$3 job=$4; shift 4
enter "$tries/$token"
if [ ! -L submit ] && [ ! -L owner ]; then
    me=$HOSTNAME.$$.${EPOCHREALTIME:-$(date +%s.%N)}.$RANDOM$RANDOM
    printf %s "$job" >"job.$me" || { rm -f "job.$me"; exit 74; }
    ln -sT "$me" submit 2>/dev/null
    if [ "$(readlink submit)" = "$me" ]; then
        mv -T "job.$me" job.sh
        setsid bash -c '
            timeout 300 "$@" >"out.$0" 2>"err.$0"; code=$?
            mapfile -tn 60 out <"out.$0"; mapfile -tn 60 err <"err.$0"
            { echo "exit $code"; printf "out %s\n" "${out[@]}"
              printf "err %s\n" "${err[@]}"; } >"reply.$0"
            mv -T "reply.$0" reply' "$me" "$@" </dev/null >/dev/null 2>&1 &
    else
        rm -f "job.$me"; [ -L submit ] || exit 74
    fi
fi
turns=$((patience * 50))
while [ ! -e reply ] && [ ! -L owner ] && [ "$turns" -gt 0 ]; do
    sleep 0.02; turns=$((turns - 1))
done
look "$token"
"""

# $1 tries folder, then tokens: the links, then (later!) what squeue lists by their names.
QUEUE = (
    r"""
tries=$1; shift
enter "$tries"
look "$@"
names=$(printf ',kit-%s' "$@")
echo "@queue"
SLURM_TIME_FORMAT=%s squeue --noheader --states=all --user="$(id -un)" --name="${names#,}" \
    --format='"""
    + QUEUE_FORMAT
    + r"""'
echo "@exit $?"
"""
)

# $1 tries folder, $2 columns, $3 job ids, $4 job names (either may be empty), then tokens.
# The links come after sacct: a job that sacct knows to have ended has had its chance to commit.
ACCOUNT = r"""
tries=$1 columns=$2 ids=$3 names=$4; shift 4
echo "@account"
code=0
if [ -n "$ids" ]; then
    SLURM_TIME_FORMAT=%s sacct --parsable2 --duplicates --format="$columns" --jobs="$ids"
    code=$?
fi
echo "@exit $code"
echo "@account"
if [ -n "$names" ]; then
    SLURM_TIME_FORMAT=%s sacct --parsable2 --duplicates --format="$columns" --name="$names" \
        --user="$(id -un)" --starttime=now-30days
    code=$?
fi
echo "@exit $code"
enter "$tries"
look "$@"
"""

# $1 tries folder, $2 token, $3 mode: `fence` takes the owner link and, only where that was won,
# the commit link; `settle` takes both (the fate of the owner is known); `cancel` takes both and
# ends the jobs. Jobs of this try that still wait are ended by name: they could do no work.
CLOSE = r"""
tries=$1 token=$2 mode=$3
enter "$tries/$token"
case $mode in cancel) word=cancelled end=cancelled ;; *) word=fenced end=closed ;; esac
ln -sT "$word" owner 2>/dev/null
owner=$(readlink owner) || exit 74
case $mode:$owner in
    fence:fenced | fence:cancelled | settle:* | cancel:*) ln -sT "$end" commit 2>/dev/null ;;
esac
code=0
case $mode:$owner:$(readlink commit) in
    *:manifest-*) ;;
    cancel:[0-9]*)
        scancel --user="$(id -un)" --name="kit-$token"; code=$?
        scancel --quiet --user="$(id -un)" "${owner%.*}" ;;
    fence:fenced:* | cancel:*) scancel --user="$(id -un)" --name="kit-$token"; code=$? ;;
esac
look "$token"
echo "@cancel $code"
"""

# $1 tries folder, $2 token, $3 offset, $4 file ("" is the owner's log): at most 1 MB.
LOG = r"""
cd "$1/$2" || exit 74
owner=$(readlink owner)
tail -c "+$(($3 + 1))" "${4:-job-${owner%.*}.log}" 2>/dev/null | head -c 1000000 | base64 -w0
"""


def wrap(body: str, *arguments: str) -> bytes:
    """Make the stdin of `bash -s`: nothing runs before all of it has arrived."""
    return f"main() {{\nset -- {shlex.join(arguments)}\n{LOOK}{body}}}\nmain; exit\n".encode()


@dataclass(frozen=True)
class Try:
    """The links of one try and sbatch's stored reply; times are the server's."""

    token: str
    submit: str = ""
    owner: str = ""
    commit: str = ""
    reply: SubmitReply | None = None
    code: int = 0
    asked: float | None = None
    replied: float | None = None

    @property
    def worked(self) -> bool:
        """Whether a job of this try has begun to work."""
        return bool(re.fullmatch(r"\d+\.\d+", self.owner))

    @property
    def given_up(self) -> bool:
        """Whether the owner link was taken before any job could begin."""
        return self.owner in CLOSED_OWNER

    @property
    def manifest(self) -> str:
        """The committed manifest's name, or nothing."""
        return self.commit if re.fullmatch(r"manifest-[0-9a-f]{64}", self.commit) else ""

    @property
    def job_id(self) -> str:
        """The job that owns the try, else the one that sbatch named."""
        if self.worked:
            return self.owner.partition(".")[0]
        return self.reply.job_id if self.reply else ""

    @property
    def life(self) -> int | None:
        """Which start of the job owns the try (0 is the first); None while none does."""
        return int(self.owner.partition(".")[2]) if self.worked else None


@dataclass(frozen=True)
class Answer:
    """What one script said: the tries, the server's time, the raw listings with exit codes."""

    tries: dict[str, Try]
    now: float
    listings: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    cancel_code: int = 0
    err: str = ""

    def listing(self, name: str) -> list[tuple[int, str]]:
        """Give the listings of a name. Raises DataError when the answer has none."""
        if name not in self.listings:
            raise DataError(f"the site's answer has no {name}", repr(self.err[-300:]), "ask again")
        return self.listings[name]


def read_answer(text: str, err: str, tokens: Sequence[str]) -> Answer:
    """Read what LOOK and the listings printed. Raises DataError when the end is missing."""
    parts = r"^@(tries|queue|account|(?:now|exit|cancel)(?= \d))(?: (\d+))?\n"
    pieces = re.split(parts, text, flags=re.M)
    tries, now, cancel = {token: Try(token) for token in tokens}, None, 0
    listings: dict[str, list[tuple[int, str]]] = {}
    open_listing: tuple[str, str] | None = None
    for word, number, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if word == "tries":
            lines: dict[str, list[str]] = {token: [] for token in tokens}
            for line in body.splitlines():
                lines.get(line[:12], []).append(line)
            tries = {token: read_try(token, lines[token]) for token in tokens}
        elif word in ("queue", "account"):
            open_listing = word, body
        elif word == "exit" and open_listing:
            listings.setdefault(open_listing[0], []).append((int(number), open_listing[1]))
            open_listing = None
        elif word == "now":
            now = float(number)
        elif word == "cancel":
            cancel = int(number)
    if now is None or open_listing:
        raise DataError("the site's answer is not whole", repr(text[-300:]), "ask again")
    return Answer(tries, now, listings, cancel, err)


def read_try(token: str, lines: Sequence[str]) -> Try:
    """Read the lines of one try: `token|name|time|value` of links, `token/reply:…` of sbatch."""
    value: dict[str, str] = {}
    moment: dict[str, float] = {}
    said = {"exit": "", "out": "", "err": ""}
    for line in lines:
        if link := re.fullmatch(r"\w+\|(submit|owner|commit|reply)\|([\d.]+)\|(.*)", line):
            value[link[1]], moment[link[1]] = link[3], float(link[2])
        elif reply := re.fullmatch(r"\w+/reply:(exit|out|err) ?(.*)", line):
            said[reply[1]] += f"{reply[2]}\n"
    code = int(said["exit"]) if said["exit"].strip().isdigit() else None
    return Try(
        token=token,
        submit=value.get("submit", ""),
        owner=value.get("owner", ""),
        commit=value.get("commit", ""),
        reply=None if code is None else read_reply(code, said["out"], said["err"]),
        code=code or 0,
        asked=moment.get("submit"),
        replied=moment.get("reply"),
    )
