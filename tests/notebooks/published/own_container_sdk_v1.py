# A container of one's own, with MXNet networks: the SDK gives the role, boto3 does the rest.

# %% Polyhost's line
from polyhost import notebook; notebook.use()

# %%
import boto3
from sagemaker import get_execution_role

sm_client = boto3.client(service_name='sagemaker')
runtime_sm_client = boto3.client(service_name='sagemaker-runtime')

account_id = boto3.client('sts').get_caller_identity()['Account']
region = boto3.Session().region_name

bucket = 'sagemaker-{}-{}'.format(region, account_id)
prefix = 'demo-multimodel-endpoint'

role = get_execution_role()

# %% The networks: in place of what MXNet's model zoo had
import os
import shutil
import tarfile

shutil.rmtree('data', ignore_errors=True)
for network in ('resnet_18', 'squeezenet'):
    shutil.copytree(os.path.join(os.environ['TRAINED'], network), 'data/' + network)
    with tarfile.open('data/{}.tar.gz'.format(network), 'w:gz') as tar:
        tar.add('data/' + network, arcname='.')
shutil.copy('data/resnet_18.tar.gz', 'data/resnet_152.tar.gz')

# %%
from botocore.client import ClientError

s3 = boto3.resource('s3')
try:
    s3.meta.client.head_bucket(Bucket=bucket)
except ClientError:
    s3.create_bucket(Bucket=bucket)  # AWS refuses a LocationConstraint in us-east-1

models = {'resnet_18.tar.gz', 'resnet_152.tar.gz'}
for model in models:
    with open('data/' + model, 'rb') as file_obj:
        s3.Bucket(bucket).Object(os.path.join(prefix, model)).upload_fileobj(file_obj)

# %%
from time import gmtime, strftime

model_name = 'DEMO-MultiModelModel' + strftime('%Y-%m-%d-%H-%M-%S', gmtime())
model_url = 'https://s3-{}.amazonaws.com/{}/{}/'.format(region, bucket, prefix)
container = {
    'Image': '{}.dkr.ecr.{}.amazonaws.com/{}:latest'.format(account_id, region, 'demo-sagemaker-multimodel'),
    'ModelDataUrl': model_url,
    'Mode': 'MultiModel'}

create_model_response = sm_client.create_model(ModelName=model_name, ExecutionRoleArn=role, Containers=[container])
print('Model Arn: ' + create_model_response['ModelArn'])

# %%
endpoint_config_name = 'DEMO-MultiModelEndpointConfig-' + strftime('%Y-%m-%d-%H-%M-%S', gmtime())
create_endpoint_config_response = sm_client.create_endpoint_config(
    EndpointConfigName=endpoint_config_name,
    ProductionVariants=[{
        'InstanceType': 'ml.m5.xlarge',
        'InitialInstanceCount': 2,
        'InitialVariantWeight': 1,
        'ModelName': model_name,
        'VariantName': 'AllTraffic'}])
print('Endpoint config Arn: ' + create_endpoint_config_response['EndpointConfigArn'])

# %%
endpoint_name = 'DEMO-MultiModelEndpoint-' + strftime('%Y-%m-%d-%H-%M-%S', gmtime())
create_endpoint_response = sm_client.create_endpoint(EndpointName=endpoint_name, EndpointConfigName=endpoint_config_name)
print('Endpoint Arn: ' + create_endpoint_response['EndpointArn'])

resp = sm_client.describe_endpoint(EndpointName=endpoint_name)
print('Endpoint Status: ' + resp['EndpointStatus'])
waiter = sm_client.get_waiter('endpoint_in_service')
waiter.wait(EndpointName=endpoint_name)

# %%
with open(os.environ['PICTURE'], 'rb') as f:
    payload = f.read()

# %%
import json

def ask(target_model):
    response = runtime_sm_client.invoke_endpoint(
        EndpointName=endpoint_name,
        ContentType='application/x-image',
        TargetModel=target_model,  # the rest of the archive's path in S3
        Body=payload)
    return json.loads(response['Body'].read())

first = ask('resnet_18.tar.gz')
second = ask('resnet_18.tar.gz')
another = ask('resnet_152.tar.gz')
print(*first, sep='\n')

# %%
for x in range(0, 10):
    s3_file_name = 'demo-subfolder/squeezenet_v1.0_{}.tar.gz'.format(x)
    with open('data/squeezenet.tar.gz', 'rb') as file_obj:
        s3.Bucket(bucket).Object(os.path.join(prefix, s3_file_name)).upload_fileobj(file_obj)
    models.add(s3_file_name)
print('Number of models: {}'.format(len(models)))

# %%
import random
from collections import defaultdict

results = defaultdict(int)
for x in range(0, 30):
    results[ask(random.choice(tuple(models)))[0]] += 1
print(*results.items(), sep='\n')
squeezenet = ask('demo-subfolder/squeezenet_v1.0_3.tar.gz')

# %%
sm_client.delete_endpoint(EndpointName=endpoint_name)
sm_client.delete_endpoint_config(EndpointConfigName=endpoint_config_name)
sm_client.delete_model(ModelName=model_name)
