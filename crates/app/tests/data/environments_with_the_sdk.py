"""What a user of azureml-core does with environments; prints what it saw as JSON in the last line."""
import contextlib, io, json, sys, time, zipfile

import requests
from azureml._execution._commands import _serialize_run_config_to_dict
from azureml.core import Environment, ScriptRunConfig, Workspace
from azureml.core.authentication import ServicePrincipalAuthentication
from azureml.core.environment import EnvironmentReference

tenant, client, secret, subscription, group, name = sys.argv[1:]
auth = ServicePrincipalAuthentication(tenant, client, secret)
ws = Workspace.get(name, auth=auth, subscription_id=subscription, resource_group=group)
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
# The definition is the SDK's own; it travels as in the REST example, because the SDK's way uploads a snapshot first, which is another service.
definition = {"Configuration": _serialize_run_config_to_dict(config.run_config)}
archive = io.BytesIO()
with zipfile.ZipFile(archive, "w") as project:
    project.write("project/hello.py", "hello.py")
base = f"https://{ws.location}.api.azureml.ms"
scope = f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.MachineLearningServices/workspaces/{name}"
files = [("runDefinitionFile", ("definition.json", json.dumps(definition))), ("projectZipFile", ("project.zip", archive.getvalue()))]
answer = requests.post(f"{base}/execution/v1.0{scope}/experiments/sdk/startrun", files=files, headers=auth.get_authentication_header())
said["run"] = answer.json().get("runId")
if not said["run"]:
    sys.exit(answer.text)
while True:
    status = requests.get(f"{base}/history/v1.0{scope}/runs/{said['run']}", headers=auth.get_authentication_header()).json()["status"]
    if status in ("Completed", "Failed", "Canceled", "Cancelled"):
        break
    time.sleep(0.5)
print(json.dumps(said))
