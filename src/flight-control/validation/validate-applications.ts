/** `spec.applications`: an image, or the files themselves. */
import { field, isList, isObject, type JsonObject } from '../manifest/json-value.ts';
import { readManifest } from '../manifest/read-manifest.ts';
import { devicePathReasons, PATH_REASONS, relativePathReasons } from '../rendering/config-path.ts';
import { isDnsSubdomain, isImage, isStrictImage } from './formats.ts';
import { isTemplate, type SpecContext, validateImage } from './spec-context.ts';
import { fillPlaceholders } from './template-text.ts';
import { validateContent } from './validate-config.ts';

const TYPES = ['container', 'compose', 'quadlet', 'helm', 'vm'];
const PORT_MAX = 65_535;
const ENV_NAME = /^[A-Za-z_][A-Za-z0-9_]*$/;
const COMPOSE_FILES = ['docker-compose.yaml', 'docker-compose.yml', 'podman-compose.yaml', 'podman-compose.yml'];

export function validateApplications(context: SpecContext, at: string, applications: unknown): void {
  const { report } = context;
  if (applications === undefined || applications === null) return;
  if (!isList(applications)) {
    report.refuse(at, 'must be a list', applications);
    return;
  }
  const names = new Set<string>();
  applications.forEach((application, index) => {
    const place = `${at}[${index}]`;
    if (!isObject(application)) {
      report.refuse(place, 'must be a map', application);
      return;
    }
    validateName(context, place, application, names);
    const type = field(application, 'appType');
    if (type === undefined || type === '') report.refuse(`${place}.appType`, 'is missing');
    else if (typeof type !== 'string' || !TYPES.includes(type)) {
      report.refuse(`${place}.appType`, `is not known: it must be one of ${TYPES.join(', ')}`, type);
    }
    if (field(application, 'desiredState') !== undefined) report.refuse(`${place}.desiredState`, 'is read-only');
    validateSource(context, place, application, type);
    validateEnvironment(context, `${place}.envVars`, field(application, 'envVars'));
    validateVolumes(context, `${place}.volumes`, field(application, 'volumes'), type);
  });
}

function validateName({ report }: SpecContext, at: string, application: JsonObject, names: Set<string>): void {
  const given = field(application, 'name');
  const name = given ?? field(application, 'image');
  if (given === undefined && typeof field(application, 'image') !== 'string') {
    report.refuse(`${at}.name`, 'is missing');
    return;
  }
  if (given !== undefined && (typeof given !== 'string' || !isDnsSubdomain(given))) {
    report.refuse(`${at}.name`, 'is not a DNS-1123 subdomain of at most 253 characters', given);
  }
  if (typeof name !== 'string') return;
  if (names.has(name)) report.refuse(`${at}.name`, 'this name is used twice', name);
  names.add(name);
}

function validateSource(context: SpecContext, at: string, application: JsonObject, type: unknown): void {
  const { report } = context;
  const image = field(application, 'image');
  const inline = field(application, 'inline');
  if (image !== undefined && inline !== undefined) {
    report.refuse(at, 'has both image and inline');
    return;
  }
  if (image === undefined && inline === undefined) {
    report.refuse(at, 'needs image or inline');
    return;
  }
  if (image !== undefined) {
    validateImage(context, `${at}.image`, image, isImage);
  } else if (type === 'container' || type === 'helm') {
    report.refuse(`${at}.inline`, `a ${type} application is an image`);
  } else {
    validateFiles(context, `${at}.inline`, inline, type);
  }
  validatePorts(context, `${at}.ports`, field(application, 'ports'), type);
}

function validatePorts({ report }: SpecContext, at: string, ports: unknown, type: unknown): void {
  if (ports === undefined || ports === null) return;
  if (!isList(ports)) {
    report.refuse(at, 'must be a list', ports);
    return;
  }
  if (ports.length > 0 && type !== 'container') report.refuse(at, 'are for container applications only');
  ports.forEach((port, index) => {
    const numbers = typeof port === 'string' ? /^([0-9]+):([0-9]+)$/.exec(port)?.slice(1) : undefined;
    if (numbers?.every((number) => Number(number) >= 1 && Number(number) <= PORT_MAX)) return;
    report.refuse(`${at}[${index}]`, `must be host:container, each a port from 1 to ${PORT_MAX}, quoted`, port);
  });
}

function validateFiles(context: SpecContext, at: string, files: unknown, type: unknown): void {
  const { report } = context;
  if (!isList(files)) {
    report.refuse(at, 'must be a list', files);
    return;
  }
  const paths = new Set<string>();
  files.forEach((file, index) => {
    const place = `${at}[${index}]`;
    if (!isObject(file)) {
      report.refuse(place, 'must be a map', file);
      return;
    }
    const path = field(file, 'path');
    if (typeof path !== 'string') {
      report.refuse(`${place}.path`, path === undefined ? 'is missing' : 'must be text', path);
      return;
    }
    if (paths.has(path)) report.refuse(`${place}.path`, 'this path is used twice', path);
    paths.add(path);
    if (!isTemplate(context, `${place}.path`, path)) {
      for (const reason of relativePathReasons(path)) report.refuse(`${place}.path`, PATH_REASONS[reason], path);
    }
    if (field(file, 'content') !== undefined) validateContent(context, place, file);
    if (type === 'compose') validateCompose(context, place, path, file);
  });
}

function validateCompose(context: SpecContext, at: string, path: string, file: JsonObject): void {
  const { report } = context;
  if (!COMPOSE_FILES.includes(path)) {
    report.refuse(`${at}.path`, `a compose file is called one of ${COMPOSE_FILES.join(', ')}`, path);
    return;
  }
  const content = field(file, 'content');
  if (typeof content !== 'string' || content === '') return;
  const text = field(file, 'contentEncoding') === 'base64' ? Buffer.from(content, 'base64').toString() : content;
  const [document] = readManifest(text);
  if (document === undefined || document.problem !== undefined || !isObject(document.value)) {
    report.refuse(`${at}.content`, `is no compose file: ${document?.problem ?? 'it is no map'}`);
    return;
  }
  const services = field(document.value, 'services');
  if (services === undefined || services === null) return;
  if (!isObject(services)) {
    report.refuse(`${at}.content`, 'services must be a map');
    return;
  }
  for (const [name, service] of Object.entries(services)) {
    if (field(service, 'container_name') !== undefined) {
      report.refuse(`${at}.content`, `services.${name}.container_name is not allowed`);
    }
    const image = field(service, 'image');
    if (typeof image === 'string' && isStrictImage(context.template ? fillPlaceholders(image, 'x') : image)) continue;
    report.refuse(`${at}.content`, `services.${name}.image must be an image reference with its registry`, image);
  }
}

function validateEnvironment({ report }: SpecContext, at: string, variables: unknown): void {
  if (variables === undefined || variables === null) return;
  if (!isObject(variables)) {
    report.refuse(at, 'must be a map', variables);
    return;
  }
  for (const [name, value] of Object.entries(variables)) {
    if (!ENV_NAME.test(name) || name.length > 253)
      report.refuse(at, `${JSON.stringify(name)} is not the name of a variable`);
    if (typeof value !== 'string') report.refuse(`${at}.${name}`, 'must be text (quote it in YAML)', value);
  }
}

function validateVolumes(context: SpecContext, at: string, volumes: unknown, type: unknown): void {
  const { report } = context;
  if (volumes === undefined || volumes === null) return;
  if (!isList(volumes)) {
    report.refuse(at, 'must be a list', volumes);
    return;
  }
  const names = new Set<unknown>();
  volumes.forEach((volume, index) => {
    const place = `${at}[${index}]`;
    if (!isObject(volume)) {
      report.refuse(place, 'must be a map', volume);
      return;
    }
    const name = field(volume, 'name');
    if (typeof name !== 'string' || !isDnsSubdomain(name)) {
      report.refuse(`${place}.name`, name === undefined ? 'is missing' : 'is not a DNS-1123 name', name);
    } else if (names.has(name)) report.refuse(`${place}.name`, 'this name is used twice', name);
    names.add(name);
    const image = field(volume, 'image');
    const mount = field(volume, 'mount');
    if (image === undefined && mount === undefined) {
      report.refuse(place, 'needs image or mount');
      return;
    }
    if (image !== undefined) validateImage(context, `${place}.image.reference`, field(image, 'reference'), isImage);
    if (mount === undefined) {
      if (type === 'container')
        report.refuse(`${place}.mount`, 'is missing: a volume of a container is mounted somewhere');
      return;
    }
    if (type !== 'container') report.refuse(`${place}.mount`, 'is for container applications only');
    const path = field(mount, 'path');
    if (typeof path !== 'string') {
      report.refuse(`${place}.mount.path`, 'is missing', path);
      return;
    }
    if (isTemplate(context, `${place}.mount.path`, path)) return;
    // Mount options stand behind a colon.
    for (const reason of devicePathReasons(path.split(':', 1)[0]!)) {
      report.refuse(`${place}.mount.path`, PATH_REASONS[reason], path);
    }
  });
}
