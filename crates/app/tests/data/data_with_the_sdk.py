"""What a user of azureml-core does with datastores, data references and compute targets; prints what it saw as JSON in the last line."""
import json

from azureml.core import Datastore, Environment, ScriptRunConfig
from azureml.core.compute import ComputeTarget
from azureml.core.script_run_config import _update_args_and_io
from azureml.data import OutputFileDatasetConfig
from with_the_sdk import submit, ws

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
said["run"] = submit(config.run_config)
print(json.dumps(said))
