"""How faults are seeded that take more than a line; each gives the doctor's findings."""

import dataclasses
import errno
import http.server
import os
import shutil
import sys
import threading
import time
import uuid

from buckets import remove_bucket
from doctor_bench import BARE, ENV
from fake_keystone import FakeKeystone
from fake_kfp import FakeKfp, serving
from kit_sandbox import files as sandbox_files
from kit_sandbox import services as sandbox_services
from kit_sandbox.supervisor import control
from memory_store import MemoryStore
from private_sshd import CLIENT, closing_port, keygen

from kit import store
from kit.base import ClockSkewed, Secret
from kit.base.settings import SITES, Cloud, Port, Store
from kit.doctor import checks as doctor
from kit.doctor import context, in_job, link_race, local
from kit.doctor.context import CheckContext
from kit.doctor.diagnosis import DiagnosisError
from kit.slurm import JobSpec
from kit.store import Ec2Key, Keystone, keystone_for
from kit.submitter import env

SEEN = {"node": "c1", "umask": "0077", "locale": "C.UTF-8", "srun": "/usr/bin/srun"}
SEEN |= {"python": "3.11.2 /usr/bin/python3", "torch": "2.13.0", "gpus": "0"}
JOB_FAILS = DiagnosisError("job-fails", "exit code 96: the module x could not be loaded")
NOBODY = "http://127.0.0.1:9"
LFS = """case "$1 $2" in
"project -d") echo "  200020 P $3" ;;
"quota -p") echo "/proj 943718400 0 943823258 - 99100 0 100000 -" ;;
esac"""  # of a project that has 102.4 MiB and 900 files left


def login(bench, auth_url=NOBODY, text=ENV, mode=0o600, **store_keys):
    file = bench.file(text, mode, ".env")
    return bench.look(env_file=file, store=Store("s3", NOBODY, auth_url=auth_url, **store_keys))


def tracked_env(bench):
    file = bench.tracked(bench.file(ENV, name=".env"))
    return bench.look(env_file=file, store=Store("s3", NOBODY, auth_url=NOBODY))


def compose(bench, text, mode):
    bench.monkeypatch.setenv("KIT_COMPOSE_SECRETS", str(bench.file(text, mode)))
    return bench.look()


def keystone(bench, status):
    fake = FakeKeystone(status=status)
    bench.ends.callback(fake.close)
    return login(bench, fake.url)


def damaged_store(bench):
    class Damaged(MemoryStore):
        def ensure_bucket(self):
            pass

        def get(self, key, **_):
            return super().get(key) + b"!"

    bench.monkeypatch.setattr(store, "open_store", lambda *_, **__: Damaged())
    return bench.look(store=Store("directory", str(bench.folder)))


def no_kfp(bench):
    bench.monkeypatch.setitem(sys.modules, "kfp", None)
    return bench.look(cloud=Cloud())


def kfp_refuses(bench):
    url = bench.ends.enter_context(serving(FakeKfp([], cookie="a=b")))
    return bench.look(cloud=Cloud(runner="cluster", kfp_url=url))


def mlflow_answers(bench, status, text, artifacts=200):
    """Serve MLflow's two paths with these answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(artifacts if "artifacts" in self.path else status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bench.ends.callback(server.server_close)
    bench.ends.callback(server.shutdown)
    return bench.look(cloud=Cloud(mlflow_url=f"http://127.0.0.1:{server.server_port}"))


def skewed_store(bench):
    class Skewed(MemoryStore):
        def ensure_bucket(self):
            raise ClockSkewed("list pipeline: the clock is off", "HTTP 403 RequestTimeTooSkewed")

    bench.monkeypatch.setattr(store, "open_store", lambda *_, **__: Skewed())
    return bench.look(store=Store("directory", str(bench.folder)))


def without_locks(bench):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    bench.monkeypatch.setattr(local.fcntl, "flock", flock)
    return bench.look(results_dir=bench.folder / "results")


def tracking_uri(bench, uri):
    bench.monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return bench.look()


def without_keystoneauth(bench):
    """After `make local` the packages of the cloud are missing."""
    bench.monkeypatch.setattr(context, "keystone_for", missing_package)
    return login(bench)


def missing_package(*_):
    raise ModuleNotFoundError("No module named 'keystoneauth1'")


def late(bench):
    url = f"http://127.0.0.1:{bench.listening()}"
    return bench.look(limit_s=0.5, cloud=Cloud(forwarder_url=url))


def forwarded(bench, port):
    return bench.look(cloud=Cloud(), ports={"mlflow": Port(port, "mlflow", "mlflow")})


def certificate(bench, start_s, end_s):
    server = bench.sshd(start=False, certificates=True)
    server.certify(time.time() + start_s, time.time() + end_s)
    return bench.login_node(server, needs_certificate=True, renew_hint="sign a new one")


def without_ssh(bench):
    bench.monkeypatch.setenv("PATH", str(bench.folder))
    return bench.look(hpc=bench.site(None, "/nowhere", needs_certificate=True), cloud=Cloud())


def refused(bench, of):
    server = bench.sshd()
    server.accept(False)
    return bench.vm(server) if of == "vm" else bench.login_node(server)


def closing(bench):
    port = bench.ends.enter_context(closing_port())
    config = CLIENT.format(port=port, user="u", folder=bench.folder)
    return bench.look(hpc=bench.site(None, bench.key(config=config)))


def another_machine(bench):
    server = bench.sshd()
    keygen("-t", "ed25519", "-N", "", "-f", bench.folder / "other")
    server.know((bench.folder / "other.pub").read_text())
    return bench.login_node(server)


def vm_beyond_a_jump(bench):
    """The VM is reached from here, by a jump, and at port 9 nobody answers the site."""
    server = bench.sshd()
    config = server.folder / "config"
    jump = f"ssh -F {config} -W 127.0.0.1:{server.port} site"
    more = config.read_text().replace("Host site", "Host vm").replace(str(server.port), "9")
    config.write_text(f"{config.read_text()}{more}  ProxyCommand {jump}\n")
    return bench.vm(server, ssh_host="vm")


def vm_with(bench, setting, address):
    return bench.vm(bench.sshd(more=setting), tunnel_address=address)


def full_folder(bench):
    """No file may hold a single byte: what a full disk or quota looks like."""
    dd = f"trap '' XFSZ; exec {shutil.which('prlimit')} --fsize=0 {shutil.which('dd')} \"$@\""
    return bench.login_node(bench.bare(dd=dd))


def folder_of_another(bench):
    """As the second member of a project finds the folder that the first one's run has made."""
    kit = bench.folder / "kit"
    if os.getuid() == 0:
        kit.mkdir(mode=0o700)
        os.chown(kit, 12345, 12345)
    else:
        kit.symlink_to("/usr")  # it belongs to root
    return bench.login_node(bench.bare())


def container(bench, runtime, image):
    """A profile with a container, on a site whose `apptainer` does that; it may have none."""
    (bench.folder / "runtime").mkdir()
    if runtime:
        program = bench.folder / "runtime" / "apptainer"
        program.write_text(f"#!/bin/sh\n{runtime}\n")
        program.chmod(0o755)
    init = bench.file(f"PATH={bench.folder}/runtime\n", name="init")
    return bench.login_node(bench.bare(), module_init=str(init), container=image)


def environment_without_ray(bench):
    server = bench.bare()
    hpc = bench.site(server)
    python = bench.folder / "kit/venvs" / env.environment_key(hpc, env.pins()) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho No package metadata was found for ray >&2; exit 1\n")
    python.chmod(0o755)
    return bench.login_node(server)


def slurm(bench, partition="small", **programs):
    return bench.login_node(bench.bare(**programs), partition=partition, account="p")


def links_that_replace(bench):
    """There, `ln -sT` takes the place of a link that is there."""
    return bench.login_node(bench.bare(ln='shift; exec /bin/ln -sfT "$@"'))


def raced(bench, found):
    """Let the race for links with a job end so: with what it found, or an error."""

    def race(*_):
        if isinstance(found, Exception):
            raise found
        return found

    bench.monkeypatch.setattr(link_race, "race", race)
    made = CheckContext(dataclasses.replace(BARE, hpc=bench.site(bench.bare())))
    return doctor.run_checks(made, race=True)


def in_a_job(bench, found, **asked):
    """Let the job of `--job` end so: with this report, or with an error."""

    def report(_slurm):
        if isinstance(found, Exception):
            raise found
        return in_job.check_report(found, dataclasses.replace(JobSpec("x", ()), **asked))

    bench.monkeypatch.setattr(in_job, "check_with_job", report)
    made = CheckContext(dataclasses.replace(BARE, hpc=bench.site(bench.bare())))
    return doctor.run_checks(made, job=True)


def budget(bench):
    text = (SITES / "sandbox.toml").read_text()
    return bench.profile(f'{text}\n[budget]\nany = "0.0001"\n')


def recorded(argv, name):
    return lambda bench: bench.cluster({tuple(argv): name})


def without(bench, name):
    """Stop a service of the sandbox; it is there again after the test."""
    folder = sandbox_files.folder_of(bench.loaded())
    control(folder).stopProcess(name)
    bench.ends.callback(start_again, folder, name)
    return bench.sandbox()


def start_again(folder, name):
    control(folder).startProcess(name)
    deadline = time.monotonic() + 60
    while not sandbox_services.check_health(folder, name)[name].healthy:
        assert time.monotonic() < deadline, f"{name} is not healthy again"
        time.sleep(0.2)


def edited(bench, old, new):
    """Run the doctor with the sandbox's .env and another text in it."""
    text = bench.loaded().env_file.read_text().replace('"', "")
    return bench.sandbox(env_file=bench.file(text.replace(old, new), name=".env"))


def unknown_ec2_key(bench):
    made_up = Ec2Key("nobody", Secret("nothing"))
    bench.monkeypatch.setattr(Keystone, "ec2_key", lambda _: made_up)
    return bench.sandbox()


def taken_bucket(bench):
    """Let the user's other project make the bucket that the profile names."""
    loaded = bench.loaded(store={"bucket_prefix": f"t{uuid.uuid4().hex[:8]}"})
    mine = keystone_for(loaded)
    login = dataclasses.replace(mine.login, project="project_2005678")
    keystone = Keystone(login, mine.auth_url, mine.ca_file)
    other = store.open_store(loaded, store.bucket_name(loaded, "pipeline"), keystone=keystone)
    other.ensure_bucket()
    bench.ends.callback(remove_bucket, other)
    return doctor.run_checks(CheckContext(loaded))
