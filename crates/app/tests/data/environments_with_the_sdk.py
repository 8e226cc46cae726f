"""What a user of azureml-core does with environments; prints what it saw as JSON in the last line."""
import contextlib, io, json

from azureml.core import Environment, ScriptRunConfig
from azureml.core.environment import EnvironmentReference
from with_the_sdk import submit, ws

said = {}


def environment(requirement):
    made = Environment("train/deep")
    made.python.conda_dependencies.set_python_version("3")
    made.python.conda_dependencies._conda_dependencies["dependencies"] = [{"pip": [requirement]}]
    return made


said["versions"] = [environment(requirement).register(ws).version for requirement in ["six==1.16.0", "six==1.16.0", "six==1.15.0"]]
first = Environment.get(ws, "train/deep", version="1")
said["packages"] = list(first.python.conda_dependencies.pip_packages)
said["names"] = sorted(Environment.list(ws))
said["of_workspace"] = sorted(ws.environments)
of = lambda found: [found.version, list(found.python.conda_dependencies.pip_packages)]
said["latest"] = of(ws.environments["train/deep"])
said["by_version"] = of(Environment.get(ws, "train/deep", "2"))
Environment.label(ws, "train/deep", "1", ["good"])
said["labelled"] = Environment.get(ws, "train/deep", label="good").version
said["image_exists"] = first.get_image_details(ws).image_exist

build = first.build(ws)
with contextlib.redirect_stdout(io.StringIO()):
    build.wait_for_completion(show_output=True)
said["build"] = build.status
said["build_log"] = build.get_log()

for what, call in [("unknown", lambda: Environment.get(ws, "train/dep")), ("recipe", lambda: first.build_local(ws))]:
    try:
        call()
    except Exception as error:
        said[what] = str(error)

config = ScriptRunConfig(source_directory="project", script="hello.py", compute_target="cpu-cluster", environment=first)
config.run_config.script = config.script
config.run_config.environment = EnvironmentReference("train/deep", "1")
said["run"] = submit(config.run_config)
print(json.dumps(said))
