/** A certificate authority and certificates of it, made by openssl for one test. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Certificate {
  readonly certFile: string;
  readonly keyFile: string;
  readonly cert: Buffer;
  readonly key: Buffer;
}

export interface Authority {
  readonly caFile: string;
  readonly ca: Buffer;
  /** A certificate for `localhost` and 127.0.0.1, whose subject is `name`. */
  issue(name: string): Certificate;
}

export function createAuthority(directory: string): Authority {
  const openssl = (...args: string[]): void => {
    execFileSync('openssl', args, { cwd: directory, stdio: 'pipe' });
  };
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  openssl(
    'req',
    '-x509',
    ...newKey,
    '-keyout',
    'ca.key',
    '-out',
    'ca.crt',
    '-days',
    '2',
    '-subj',
    '/CN=test authority',
  );
  const caFile = join(directory, 'ca.crt');
  return {
    caFile,
    ca: readFileSync(caFile),
    issue(name) {
      const [key, csr, cert] = [`${name}.key`, `${name}.csr`, `${name}.crt`];
      openssl('req', ...newKey, '-keyout', key, '-out', csr, '-subj', `/CN=${name}`);
      const extension = join(directory, `${name}.ext`);
      execFileSync('sh', ['-c', `echo subjectAltName=DNS:localhost,IP:127.0.0.1 > '${extension}'`]);
      openssl(
        'x509',
        '-req',
        '-in',
        csr,
        '-CA',
        'ca.crt',
        '-CAkey',
        'ca.key',
        '-CAcreateserial',
        '-out',
        cert,
        '-days',
        '2',
        '-extfile',
        extension,
      );
      const certFile = join(directory, cert);
      const keyFile = join(directory, key);
      return { certFile, keyFile, cert: readFileSync(certFile), key: readFileSync(keyFile) };
    },
  };
}
