"""What a user of azureml-core does with datastores, data references and compute targets; prints what it saw as JSON in the last line."""
import io, json, sys, time, zipfile

import requests
from azureml._execution._commands import _serialize_run_config_to_dict
from azureml.core import Datastore, Environment, ScriptRunConfig, Workspace
from azureml.core.authentication import ServicePrincipalAuthentication
from azureml.core.compute import ComputeTarget
from azureml.core.script_run_config import _update_args_and_io
from azureml.data import OutputFileDatasetConfig

tenant, client, secret, subscription, group, name = sys.argv[1:]
auth = ServicePrincipalAuthentication(tenant, client, secret)
ws = Workspace.get(name, auth=auth, subscription_id=subscription, resource_group=group)
said = {"default": ws.get_default_datastore().name, "datastores": sorted(ws.datastores), "targets": sorted(ws.compute_targets)}

target = ComputeTarget(ws, "cpu-cluster")
status = target.get_status()
said["allocation"] = status.allocation_state
said["nodes"] = len(target.list_nodes())
try:
    target.delete()
except Exception as error:
    said["deleted"] = str(error)

folder = Datastore.get(ws, "folder")
reference = folder.path("train", data_reference_name="train").as_download(path_on_compute="in")
output = OutputFileDatasetConfig(name="model", destination=(folder, "models")).as_upload(overwrite=True)
environment = Environment("own")
environment.python.user_managed_dependencies = True
environment.python.interpreter_path = "python3"
config = ScriptRunConfig(
    source_directory="project",
    script="hello.py",
    arguments=[str(reference), output],
    compute_target=target,
    environment=environment,
)
config.run_config.script = config.script
config.run_config.arguments = list(config.arguments)
config.run_config.data_references = {reference.data_reference_name: reference.to_config()}
_update_args_and_io(ws, config.run_config)
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
    state = requests.get(f"{base}/history/v1.0{scope}/runs/{said['run']}", headers=auth.get_authentication_header()).json()["status"]
    if state in ("Completed", "Failed", "Canceled", "Cancelled"):
        break
    time.sleep(0.5)
print(json.dumps(said))
